"""Replay of the optimizer's groups at published scale: which parameters decay, are frozen, clipped or never trained.

The networks are built from the recipes, on the meta device.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from selfpatch.config.recipes import load_recipe
from selfpatch.config.run import RunConfig
from selfpatch.models.layers.batch_norm import BatchNorm
from selfpatch.training.factory import make_optimizer, make_schedule, make_student_teacher
from selfpatch.training.optim import freeze_gradients, set_hyperparameters
from selfpatch.training.student_teacher import StudentTeacher
from tests.helpers.released_forms import to_branch_keys
from tests.parity.check import Check
from tests.parity.contrastive import RELEASED_MLP

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "selfpatch vit_small patch 16, norm_last_layer true": ("selfpatch-dino-vits16", {}),
    "dino vit_small patch 16, norm_last_layer true": ("dino-vits16", {}),
    "dino vit_small patch 16, norm_last_layer false": ("dino-vits16", {"dino": {"norm_last_layer": False}}),
    "ibot vit_small patch 16, norm_last_layer false, shared_head true": ("ibot-vits16", {}),
    "ibot vit_small patch 16, norm_last_layer true, shared_head false": (
        "ibot-vits16",
        {"ibot": {"norm_last_layer": True, "prototypes": "shared_by_teacher"}},
    ),
    "sere vit_small patch 16, norm_last_layer false, shared_head true": ("sere-ibot-vits16", {}),
    "sere vit_base patch 16, norm_last_layer true, shared_head true": ("sere-ibot-vitb16", {}),
    "moby_swin_tiny": ("moby-swin-tiny", {}),
    "moby_deit_small": ("moby-vits16", {}),
    "moco-v3 vit_small, stop_grad_conv1": ("moco-v3-vits16", {}),
}
"""Released network -> our recipe and options."""

FACTS_OF_THE_WRAPPER = {
    "decayed_though_the_encoder_itself_would_exempt_them",  # a part of `decayed`
    "wrapper_has_no_weight_decay",
    "encoder_has_no_weight_decay",
}
"""Facts that explain the others and have no counterpart here."""


def replay_parameter_groups(bundle: Path) -> Iterator[Check]:
    """Compare every recorded fact of every network in a `parameters.json`; each must be equal."""
    for network, expected in json.loads((bundle / "parameters.json").read_text()).items():
        if network not in NETWORKS:
            raise ValueError(
                f"no recipe is known for the network {network!r}; add it to tests/parity/parameter_groups.py"
            )
        recipe, options = NETWORKS[network]
        found = Groups(load_recipe(recipe).override(options)).facts()
        ours = _our_names(name for value in expected.values() if _is_names(value) for name in value)
        for fact, value in expected.items():
            if fact in FACTS_OF_THE_WRAPPER:
                continue
            if fact not in found:
                raise ValueError(
                    f"{network}: nothing is known about {fact}; add it to tests/parity/parameter_groups.py"
                )
            wanted = sorted(ours[name] for name in value) if _is_names(value) else value
            yield Check(f"{network}: {fact}", float(_matching(found[fact], wanted) != wanted), 0.0)


class Groups:
    """A recipe's network on the meta device, with its optimizer as set for the first step."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        with torch.device("meta"):
            self.student_teacher, _ = make_student_teacher(config)
        self.optimizer = make_optimizer(config, self.student_teacher)
        self.first = make_schedule(config, steps_per_epoch=1000)(0)
        set_hyperparameters(self.optimizer, self.first)
        self.names = {id(p): _without_side(name) for name, p in self.student_teacher.named_parameters()}

    def facts(self) -> dict[str, Any]:
        decayed, kept = ([g for g in self.optimizer.param_groups if g["decayed"] == wanted] for wanted in (True, False))
        student = self.student_teacher.student
        frozen = sorted(name for name, p in _trained_side(self.student_teacher) if not p.requires_grad)
        clipped = self.config.optimizer.clip > 0 and self.config.optimizer.clip_mode == "tensor"
        gradients, dropped = self._gradients()
        return {
            "decayed": self._names(decayed),
            "not_decayed": self._names(kept),
            "trained_and_decayed": self._names(decayed),
            "in_no_group": [frozen, len(list(self.student_teacher.teacher.parameters()))],
            "never_trained_of_base_encoder": frozen,
            "second_group_weight_decay": kept[0]["weight_decay"] if kept else None,
            "one_group_with_weight_decay": decayed[0]["weight_decay"],
            "weight_decay": decayed[0]["weight_decay"],
            "groups": len(self.optimizer.param_groups),
            "numel": [sum(p.numel() for group in groups for p in group["params"]) for groups in (decayed, kept)],
            "frozen_in_first_epoch": dropped,
            "clipped_one_by_one": gradients if clipped else 0,
            "clip": self.config.optimizer.clip if self.config.optimizer.clip_mode == "global" else None,
            "betas": list(self.optimizer.defaults["betas"]),
            "eps": self.optimizer.defaults["eps"],
            "num_heads": getattr(student.backbone.config, "num_heads", None),
            "buffers": self._batch_norms(),
        }

    def _names(self, groups: Iterable[Mapping[str, Any]]) -> list[str]:
        return sorted(self.names[id(p)] for group in groups for p in group["params"])

    def _gradients(self) -> tuple[int, list[str]]:
        """Return the number of gradients of a step, and the names that the first epoch drops, as the step does."""
        trained = [p for p in self.student_teacher.parameters() if p.requires_grad]
        for p in trained:
            p.grad = torch.empty_like(p)
        if self.first.freeze_last_layer:
            freeze_gradients(self.student_teacher, ".last_layer.")
        return len(trained), sorted(self.names[id(p)] for p in trained if p.grad is None)

    def _batch_norms(self) -> list[str]:
        """Return the buffers that torch's batch norms would have in place of ours, which keep none in heads."""
        buffers = ("running_mean", "running_var", "num_batches_tracked")
        modules = [
            (_without_side(name), module)
            for name, module in self.student_teacher.named_modules()
            if not name.startswith("teacher.")
        ]
        return sorted(f"{name}.{buffer}" for name, m in modules if isinstance(m, BatchNorm) for buffer in buffers)


def _trained_side(student_teacher: StudentTeacher) -> Iterator[tuple[str, torch.nn.Parameter]]:
    for name, p in student_teacher.named_parameters():
        if not name.startswith("teacher."):
            yield _without_side(name), p


def _without_side(name: str) -> str:
    """Return our name of a parameter as a branch has it; patch prototypes of one side count as a head of it."""
    return name.removeprefix("student.").replace("objectives.ibot.patch_prototypes.", "heads.masked_patch.")


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _matching(found: Any, wanted: Any) -> Any:
    """Return the part of `in_no_group` that a network records: the names, or how many the other side has."""
    if isinstance(found, list) and len(found) == 2 and isinstance(found[0], list):
        return found[0] if isinstance(wanted, list) else found[1]
    return found


def _our_names(released: Iterable[str]) -> dict[str, str]:
    """Return our name of each parameter of a released network; a head that both sides share stays one."""
    ours, of_branch = {}, []
    for name in dict.fromkeys(released):
        part, _, rest = name.partition(".")
        layer, _, leaf = rest.rpartition(".")
        if part in ("projector", "predictor") and layer in RELEASED_MLP:  # MoBY
            owner = "heads.projector" if part == "projector" else "objectives.moby.predictor"
            ours[name] = f"{owner}.{RELEASED_MLP[layer]}.{leaf}"
        elif part == "predictor":  # MoCo-v3
            ours[name] = f"objectives.moco_v3.predictor.{rest}"
        elif name.startswith("base_encoder.head."):
            ours[name] = f"heads.projector.{name.removeprefix('base_encoder.head.')}"
        else:
            of_branch.append(name)
    # Equal prototypes would count as shared, so that each parameter gets a value of its own: its index.
    state = to_branch_keys({name: torch.tensor([i]) for i, name in enumerate(of_branch)}, "student")
    return ours | {of_branch[int(index)]: name for name, index in state.items()}
