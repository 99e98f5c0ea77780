"""Replay of the training steps of a bundle through the configuration, network, step and optimizer of the project."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from selfpatch.config.run import RunConfig
from selfpatch.core.types import EncoderOutput, Views
from selfpatch.training.factory import make_optimizer, make_schedule, make_student_teacher
from selfpatch.training.trainer import training_step
from tests.helpers.released_forms import to_branch_keys
from tests.parity.check import GRADIENTS, TIGHT, WEIGHTS, Check, compare, compare_norms
from tests.parity.head_facts import PROTOTYPES, compare_facts, prototypes_of_one_side
from tests.parity.intermediates import INTERMEDIATES

LOSSES = {
    "dino": {"image": "loss"},
    "ibot": {"image": "cls_loss", "masked_patch": "masked_patch_loss"},
    "selfpatch": {"image": "image_loss", "patch": "patch_loss"},
    "sere": {
        "image": "cls_loss",
        "masked_patch": "masked_patch_loss",
        "spatial": "spatial_relation_loss",
        "channel": "channel_relation_loss",
    },
}
"""Names of our losses -> names in the bundle."""
CENTERS = {
    "dino": {"center": "dino.loss.center"},
    "selfpatch": {"center": "dino.loss.center", "patch_center": "selfpatch.agreement.loss.center"},
    "ibot": {"center": "ibot.image_loss.center", "patch_center": "ibot.patch_loss.center"},
    "sere": {"center": "ibot.image_loss.center", "patch_center": "ibot.patch_loss.center"},
}
"""Names of centres in the bundle -> our buffers, below the objectives."""
DISTINCTIVE_SETTINGS = {"patch_loss_weight": "selfpatch", "spatial_weight": "sere", "shared_head": "ibot"}
"""Settings that tell the kind of a bundle; the first counts."""
PATCH_PROTOTYPES = "heads.masked_patch."
"""Prefix of patch prototypes in a released side. Those that the other side lacks belong to our method, not branch."""
SCHEDULED = ("lr", "weight_decay", "teacher_momentum", "teacher_temp", "teacher_patch_temp")


def run_config(c: dict[str, Any], kind: str) -> RunConfig:
    """Return the bundle's configuration as ours."""
    settings = {"dino": _dino, "selfpatch": _selfpatch, "ibot": _ibot, "sere": _sere}
    return RunConfig().override(_common(c)).override(settings[kind](c))


def _common(c: dict[str, Any]) -> dict[str, Any]:
    schedule = ("min_lr", "warmup_epochs", "weight_decay", "weight_decay_end", "teacher_momentum", "teacher_temp")
    schedule += ("warmup_teacher_temp", "warmup_teacher_temp_epochs", "freeze_last_layer_epochs")
    return {
        "objective": "none",
        "model": "vit_small",
        "patch_size": c["patch_size"],
        "epochs": c["epochs"],
        "batch_size": c["batch_size"],
        "backbone": {k: c[k] for k in ("embed_dim", "depth", "num_heads", "drop_path")},
        "crops": {"global_size": c["global_size"], "local_size": c["local_size"], "num_local": c["local_crops"]},
        "optimizer": {
            "base_lr": c["peak_lr"] * 256 / c["batch_size"],
            **{k: c[k] for k in schedule},
            "clip": c["clip_grad"],
            "clip_mode": {"per parameter": "tensor", "global": "global"}[c["clip_mode"]],
        },
    }


def _head(c: dict[str, Any]) -> dict[str, Any]:
    return {
        "hidden_dim": c["head_hidden_dim"],
        "bottleneck_dim": c["head_bottleneck_dim"],
        "norm_last_layer": c["norm_last_layer"],
        "student_temp": c["student_temp"],
        "center_momentum": c["center_momentum"],
    }


def _dino(c: dict[str, Any]) -> dict[str, Any]:
    return {"method": "dino", "dino": {"num_prototypes": c["out_dim"], **_head(c)}}


def _selfpatch(c: dict[str, Any]) -> dict[str, Any]:
    matching = {k: c[k] for k in ("k", "window", "border")}
    return {
        **_dino(c),
        "objective": "selfpatch",
        "loss_weights": {"patch": c["patch_loss_weight"]},
        "selfpatch": {"num_prototypes": c["patch_out_dim"], **matching, **_head(c)},
    }


def prototypes_of(c: dict[str, Any]) -> str:
    return PROTOTYPES[c["shared_head"], c.get("shared_head_teacher", c["shared_head"])]


def _ibot(c: dict[str, Any]) -> dict[str, Any]:
    prototypes = {
        "prototypes": prototypes_of(c),
        "num_patch_prototypes": c["patch_out_dim"],
    }
    return {
        "method": "ibot",
        "ibot": {"num_prototypes": c["out_dim"], **prototypes, **_head(c)},
        "loss_weights": {"image": c.get("lambda1", 1.0), "masked_patch": c.get("lambda2", 1.0)},
        "optimizer": {k: c[k] for k in ("teacher_patch_temp", "warmup_teacher_patch_temp")},
    }


def _sere(c: dict[str, Any]) -> dict[str, Any]:
    ibot, spatial, channel = _ibot(c), c["spatial_weight"], c["channel_weight"]
    share = (4 - spatial - channel) / 2
    of_ibot = {name: share * weight for name, weight in ibot["loss_weights"].items()}
    of_objective = ("spatial_temp", "channel_temp", "overlap_size", "local_overlap_size")
    return {
        **ibot,
        "objective": "sere",
        "sere": {k: c[k] for k in of_objective},
        "loss_weights": {**of_ibot, "spatial": spatial, "channel": channel},
        "optimizer": {**ibot["optimizer"], "weight_decay_on": "matrices_and_biases"},
    }


class Trajectory:
    """A bundle and the network that replays it."""

    def __init__(self, bundle: Path) -> None:
        record = json.loads((bundle / "trajectory.json").read_text())
        self.settings, self.steps, self.facts = record["config"], record["steps"], record.get("facts")
        self.kind = next((kind for key, kind in DISTINCTIVE_SETTINGS.items() if key in self.settings), "dino")
        self.tensors = load_file(bundle / "tensors.safetensors")
        self.final = torch.load(bundle / "final.pth", weights_only=True)
        config = run_config(self.settings, self.kind)
        self.student_teacher, _ = make_student_teacher(config)
        self.schedule = make_schedule(config, self.settings["steps_per_epoch"])
        self.initial = torch.load(bundle / "initial.pth", weights_only=True)
        for side in ("student", "teacher"):
            self._load(side, to_branch_keys(self.initial[side]))
        self.optimizer = make_optimizer(config, self.student_teacher)

    def _load(self, side: str, state: dict[str, Tensor]) -> None:
        branch, own = getattr(self.student_teacher, side), prototypes_of_one_side(self.student_teacher, side)
        if own is not None and any(key.startswith(PATCH_PROTOTYPES) for key in state):
            own.load_state_dict({k: state.pop(PATCH_PROTOTYPES + k) for k in own.state_dict()})
        if side == "teacher" and branch.backbone.mask_token is not None:  # the released teacher has no mask token
            state["backbone.mask_token"] = branch.backbone.mask_token
        if others := state.keys() ^ branch.state_dict().keys():
            raise ValueError(f"the recorded {side} has other parameters than ours: {', '.join(sorted(others))}")
        branch.load_state_dict(state)

    def state(self, side: str) -> dict[str, Tensor]:
        """Return the current tensors of a side by the keys of a branch, without what the released side lacks."""
        state = getattr(self.student_teacher, side).state_dict()
        if (own := prototypes_of_one_side(self.student_teacher, side)) is not None:
            state |= {PATCH_PROTOTYPES + key: tensor for key, tensor in own.state_dict().items()}
        if side == "teacher":
            state.pop("backbone.mask_token", None)
        return state

    def first_teacher(self) -> Check:
        """Compare the teacher that our code makes from the recorded student with the recorded teacher."""
        teacher = self.student_teacher.student.make_teacher()
        for objective in self.student_teacher.objectives.values():
            objective.start_teacher(dict(teacher.heads.items()))
        got = {k: v for k, v in teacher.state_dict().items() if k != "backbone.mask_token"}
        expected = to_branch_keys(self.initial["teacher"])
        return compare_norms("first teacher", got, {k: expected[k] for k in got}, 0.0)

    def gradients(self) -> dict[str, Tensor]:
        """Return the gradients of the student, and of patch prototypes that only it has."""
        named = dict(self.student_teacher.student.named_parameters())
        if (own := prototypes_of_one_side(self.student_teacher, "student")) is not None:
            named |= {PATCH_PROTOTYPES + name: p for name, p in own.named_parameters()}
        return {name: p.grad for name, p in named.items() if p.grad is not None}

    def views(self, step: int) -> Views:
        crops = [self.tensors[f"step{step}.crop{v}"] for v in range(2 + self.settings["local_crops"])]
        batch = len(crops[0])
        return Views(
            global_crops=torch.stack(crops[:2]),
            local_crops=torch.stack(crops[2:]) if len(crops) > 2 else None,
            boxes=self._boxes(step, len(crops), batch),
            samples=torch.arange(batch),
            masks=torch.stack([self.tensors[f"step{step}.mask{v}"] for v in range(2)])
            if self.kind in ("ibot", "sere")
            else None,
        )

    def _boxes(self, step: int, views: int, batch: int) -> Tensor:
        """Return boxes [V, B, 5]; bundles of methods that do not read them have none."""
        boxes = self.tensors.get(f"step{step}.boxes")
        return torch.zeros(views, batch, 5) if boxes is None else boxes.transpose(0, 1)

    def center(self, name: str) -> Tensor:
        return self.student_teacher.objectives.get_submodule(CENTERS[self.kind][name]).center

    def encode(self, step: int) -> tuple[EncoderOutput, EncoderOutput]:
        """Encode the views of a step with the current weights."""
        views = self.views(step)
        crops = [*self.student_teacher._needed_crops(views).values()]
        everything = self.student_teacher.needs.teacher_on_local_crops
        with torch.no_grad():
            teacher = self.student_teacher.teacher(crops if everything else crops[:1])
            return self.student_teacher.student(crops, views.masks), teacher


def replay_trajectory(bundle: Path) -> Iterator[Check]:
    """Replay every quantity of a `dino`, `selfpatch`, `ibot` or `sere` bundle."""
    run = Trajectory(bundle)
    run.student_teacher.train()
    yield run.first_teacher()
    if run.facts is not None:
        yield from compare_facts("head", prototypes_of(run.settings), run.facts)
    yield from INTERMEDIATES[run.kind](run)
    yield from _gradient_norms(run)
    for step, expected in enumerate(run.steps):
        hp = run.schedule(step)
        outcome = training_step(run.student_teacher, [run.views(step)], run.optimizer, hp, run.schedule.config)
        for name, recorded in {"loss": "loss", **LOSSES[run.kind]}.items():
            if recorded in expected:
                yield compare(f"step {step} {recorded}", outcome.values[name], expected[recorded], TIGHT)
        for name in SCHEDULED:
            if name in expected:
                yield compare(f"step {step} {name}", getattr(hp, name), expected[name], 1e-9)
        for name in CENTERS[run.kind]:
            yield compare(f"step {step} {name}", run.center(name), run.tensors[f"step{step}.{name}"], TIGHT)
    for side in ("student", "teacher"):
        got, expected_state = (_without_key_biases(s) for s in (run.state(side), to_branch_keys(run.final[side])))
        yield compare_norms(f"final weights of the {side}", got, expected_state, WEIGHTS)


def _gradient_norms(run: Trajectory) -> Iterator[Check]:
    """Compare gradient norms of step 0, before clipping and freezing."""
    run.student_teacher(run.views(0), run.schedule(0))["loss"].backward()
    gradients = run.gradients()
    expected = run.steps[0]["grad_norms"]
    names = to_branch_keys({name: torch.tensor(norm) for name, norm in expected.items()})
    if gradients.keys() != names.keys():
        raise ValueError(f"gradients of other parameters than expected: {sorted(gradients.keys() ^ names.keys())}")
    # A key bias changes no attention, so its gradient is rounding; it lies inside qkv.bias and alone in attn.k.bias.
    errors = [abs(float(gradients[k].norm()) / float(n) - 1) for k, n in names.items() if not k.endswith("attn.k.bias")]
    yield Check(f"step 0 gradient norms ({len(errors)} tensors)", max(errors), GRADIENTS)
    run.student_teacher.zero_grad(set_to_none=True)
    run.student_teacher.discard_step()


def _without_key_biases(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Drop key biases: their gradient is only rounding, which Adam turns into updates."""
    kept = {}
    for name, tensor in state.items():
        if name.endswith("attn.k.bias"):
            continue
        if name.endswith("attn.qkv.bias"):
            query, _, value = tensor.chunk(3)
            tensor = torch.cat([query, value])
        kept[name] = tensor
    return kept
