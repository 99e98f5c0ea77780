"""Replays the training steps of a bundle through the project's own configuration, pretrainer, step and optimizer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from selfpatch.build import make_clipping, make_pretrainer, make_schedule
from selfpatch.config import RunConfig
from selfpatch.nn.heads import Center
from selfpatch.ops.neighbours import neighbour_table, top_positives
from selfpatch.optim import make_optimizer
from selfpatch.pretraining import training_step
from selfpatch.types import Encoding, Views
from selfpatch.weights import to_branch_names
from tests.parity.check import Check, compare, compare_exactly, compare_norms

TIGHT, GRADIENTS, WEIGHTS = 1e-5, 1e-4, 1e-4
LOSSES = {"dino": {"image": "loss"}, "selfpatch": {"image": "image_loss", "patch": "patch_loss"}}
"""Our losses -> the bundle's."""


def run_config(c: dict[str, Any], kind: str) -> RunConfig:
    """The bundle's own configuration in our terms."""
    head = {
        "hidden": c["head_hidden_dim"],
        "bottleneck": c["head_bottleneck_dim"],
        "norm_last_layer": c["norm_last_layer"],
        "student_temp": c["student_temp"],
        "center_momentum": c["center_momentum"],
    }
    settings: dict[str, Any] = {
        "method": "dino",
        "objective": "none",
        "model": "vit_small",
        "patch_size": c["patch_size"],
        "epochs": c["epochs"],
        "batch_size": c["batch_size"],
        "backbone": {k: c[k] for k in ("embed_dim", "depth", "num_heads", "drop_path")},
        "crops": {"global_size": c["global_size"], "local_size": c["local_size"], "num_local": c["local_crops"]},
        "dino": {"num_prototypes": c["out_dim"], **head},
        "optimizer": {
            "base_lr": c["peak_lr"] * 256 / c["batch_size"],
            **{k: c[k] for k in ("min_lr", "warmup_epochs", "weight_decay", "weight_decay_end", "teacher_momentum")},
            **{k: c[k] for k in ("teacher_temp", "warmup_teacher_temp", "warmup_teacher_temp_epochs")},
            "clip": c["clip_grad"],
            "clip_mode": {"per parameter": "tensor", "global": "global"}[c["clip_mode"]],
            "freeze_last_layer_epochs": c["freeze_last_layer_epochs"],
        },
    }
    if kind == "selfpatch":
        settings["objective"] = "selfpatch"
        settings["loss_weights"] = {"patch": c["patch_loss_weight"]}
        settings["selfpatch"] = {
            "num_prototypes": c["patch_out_dim"],
            **{k: c[k] for k in ("k", "window", "border")},
            **head,
        }
    return RunConfig().override(settings)


class Trajectory:
    """A bundle, and the pretrainer that replays it."""

    def __init__(self, bundle: Path) -> None:
        record = json.loads((bundle / "trajectory.json").read_text())
        self.settings, self.steps = record["config"], record["steps"]
        self.kind = "selfpatch" if "patch_loss_weight" in self.settings else "dino"
        self.tensors = load_file(bundle / "tensors.safetensors")
        self.final = torch.load(bundle / "final.pth", weights_only=True)
        config = run_config(self.settings, self.kind)
        self.pretrainer, _ = make_pretrainer(config)
        self.schedule = make_schedule(config, self.settings["steps_per_epoch"])
        self.clipping = make_clipping(config)
        self._load(torch.load(bundle / "initial.pth", weights_only=True))
        self.optimizer = make_optimizer(self.pretrainer)

    def _load(self, checkpoint: dict[str, Any]) -> None:
        self.pretrainer.student.load_state_dict(to_branch_names(checkpoint["student"]))
        self.pretrainer.teacher.load_state_dict(to_branch_names(checkpoint["teacher"]))

    def views(self, step: int) -> Views:
        crops = [self.tensors[f"step{step}.crop{v}"] for v in range(2 + self.settings["local_crops"])]
        batch = len(crops[0])
        return Views(
            global_crops=torch.stack(crops[:2]),
            local_crops=torch.stack(crops[2:]) if len(crops) > 2 else None,
            boxes=torch.zeros(len(crops), batch, 5),
            samples=torch.arange(batch),
        )

    def centers(self) -> dict[str, Tensor]:
        return {
            name: objective.center.center
            for name, objective in self.pretrainer.objectives.items()
            if isinstance(getattr(objective, "center", None), Center)
        }

    def encode(self, step: int) -> tuple[Encoding, Encoding]:
        """Student and teacher on a step's views, with the weights as they are."""
        crops = self.pretrainer._normalised(self.views(step))
        everything = self.pretrainer.needs.teacher_on_local_crops
        with torch.no_grad():
            return self.pretrainer.student(crops), self.pretrainer.teacher(crops if everything else crops[:1])


def replay_trajectory(bundle: Path) -> Iterator[Check]:
    """Every quantity of a `dino` or `selfpatch` bundle."""
    run = Trajectory(bundle)
    run.pretrainer.train()
    yield from (_selfpatch_intermediates if run.kind == "selfpatch" else _dino_intermediates)(run)
    yield from _gradient_norms(run)
    center_names = {"dino": "center", "selfpatch": "patch_center"}
    for step, expected in enumerate(run.steps):
        hp = run.schedule(step)
        outcome = training_step(run.pretrainer, [run.views(step)], run.optimizer, hp, clipping=run.clipping)
        if "loss" in expected:
            yield compare(f"step {step} loss", outcome.values["loss"], expected["loss"], TIGHT)
        for ours, theirs in LOSSES[run.kind].items():
            if theirs != "loss":
                yield compare(f"step {step} {theirs}", outcome.values[ours], expected[theirs], TIGHT)
        for name in ("lr", "weight_decay", "teacher_momentum", "teacher_temp"):
            if name in expected:
                yield compare(f"step {step} {name}", getattr(hp, name), expected[name], 1e-9)
        for name, center in run.centers().items():
            yield compare(
                f"step {step} {center_names[name]}", center, run.tensors[f"step{step}.{center_names[name]}"], TIGHT
            )
    for side in ("student", "teacher"):
        got = _without_key_biases(getattr(run.pretrainer, side).state_dict())
        expected_state = _without_key_biases(to_branch_names(run.final[side]))
        yield compare_norms(f"final weights of the {side}", got, expected_state, WEIGHTS)


def _gradient_norms(run: Trajectory) -> Iterator[Check]:
    """Of step 0, before clipping and freezing."""
    run.pretrainer(run.views(0), run.schedule(0))["loss"].backward()
    ours = {name: p.grad for name, p in run.pretrainer.student.named_parameters() if p.grad is not None}
    expected = run.steps[0]["grad_norms"]
    names = to_branch_names({name: torch.tensor(norm) for name, norm in expected.items()})
    if ours.keys() != names.keys():
        raise ValueError(f"gradients of other parameters than expected: {sorted(ours.keys() ^ names.keys())}")
    # A key bias changes no attention, so its gradient is rounding; it lies inside qkv.bias and alone in attn.k.bias.
    errors = [abs(float(ours[k].norm()) / float(n) - 1) for k, n in names.items() if not k.endswith("attn.k.bias")]
    yield Check(f"step 0 gradient norms ({len(errors)} tensors)", max(errors), GRADIENTS)
    run.pretrainer.zero_grad(set_to_none=True)
    run.pretrainer.discard_step()


def _dino_intermediates(run: Trajectory) -> Iterator[Check]:
    student, teacher = run.encode(0)
    for name, side in (("student", student), ("teacher", teacher)):
        logits = side.heads["image"](side.image).logits().flatten(0, 1)
        yield compare(f"{name} cls_logits", logits, run.tensors[f"step0.{name}.cls_logits"], TIGHT)
    tokens = teacher.grids[0]
    assert tokens.image is not None
    last = torch.cat([tokens.image[:, None], tokens.patches.flatten(1, 2)], 1)
    yield compare("teacher tokens after the final norm", last, run.tensors["step0.teacher.intermediate_last"], TIGHT)


def _selfpatch_intermediates(run: Trajectory) -> Iterator[Check]:
    student, teacher = run.encode(0)
    c, t = run.settings, run.tensors
    objective = run.pretrainer.objectives["selfpatch"]
    assert teacher.pool is not None
    assert student.pool is not None
    images = {"global": slice(0, 2), "local": slice(2, None)}
    for grid, (name, views) in enumerate(images.items()):
        if grid >= len(teacher.grids):
            continue
        raw = teacher.grids[grid].raw_patches
        h, w = raw.shape[1:3]
        patches = raw.flatten(1, 2)
        table = neighbour_table(h, w, c["window"], c["border"])
        if f"neighbour_indices_{h}x{w}" in t:
            yield compare_exactly(f"neighbour table {h} x {w}", table.indices, t[f"neighbour_indices_{h}x{w}"])
        yield compare(f"teacher patch_features_{name}", patches, t[f"step0.teacher.patch_features_{name}"], TIGHT)
        positives = top_positives(patches, c["k"], table).indices
        if f"step0.teacher.positive_indices_{name}" in t:
            yield compare_exactly(f"teacher positives {name}", positives, t[f"step0.teacher.positive_indices_{name}"])
        targets = objective.targets(teacher.grids[grid], teacher.pool)
        aggregated = torch.cat([teacher.image[views].flatten(0, 1)[:, None], targets], 1)
        yield compare(f"teacher aggregated_{name}", aggregated, t[f"step0.teacher.aggregated_{name}"], TIGHT)
        own = student.pool.norm(student.grids[grid].raw_patches.flatten(1, 2))
        if f"step0.student.tokens_{name}" in t:
            tokens = torch.cat([student.image[views].flatten(0, 1)[:, None], own], 1)
            yield compare(f"student tokens_{name}", tokens, t[f"step0.student.tokens_{name}"], TIGHT)
        for who, side, tokens in (("student", student, own), ("teacher", teacher, targets)):
            logits = side.heads["image"](side.image[views]).logits().flatten(0, 1)
            yield compare(f"{who} cls_logits_{name}", logits, t[f"step0.{who}.cls_logits_{name}"], TIGHT)
            patch_logits = side.heads["patch"](tokens).logits()
            yield compare(f"{who} patch_logits_{name}", patch_logits, t[f"step0.{who}.patch_logits_{name}"], TIGHT)


def _without_key_biases(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their gradient is zero but for rounding, which Adam turns into updates."""
    kept = {}
    for name, tensor in state.items():
        if name.endswith("attn.k.bias"):
            continue
        if name.endswith("attn.qkv.bias"):
            query, _, value = tensor.chunk(3)
            tensor = torch.cat([query, value])
        kept[name] = tensor
    return kept
