"""The first losses of every combination, recorded: `python -m tests.helpers.curves` writes them anew."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from selfpatch.training.factory import make_optimizer, make_schedule
from selfpatch.training.student_teacher import StudentTeacher
from selfpatch.training.trainer import training_step
from tests.helpers.tiny import tiny_config, tiny_student_teacher, tiny_views, wide_crops
from tests.helpers.tiny_eva import EVA02

FILE = Path(__file__).parents[1] / "golden" / "curves.json"
METHODS = ("dino", "ibot", "moby", "moco_v3", "moco_v2", "swav", "densecl")
OBJECTIVES = ("none", "selfpatch", "sere", "selfpatch+sere")
ANCHORED = "gram+retain+distill"
TOGETHER = ("paka+selfpatch_pairs+sere_pairs", "neco+koleo+leopart", ANCHORED)
"""Objectives that are combined with the methods together, rather than each with all of them."""
MODELS = ("vit_tiny", "swin_tiny", "resnet50", "convnext_tiny", "vit_small_dinov3", EVA02)
MASKABLE = ("vit_tiny", "swin_tiny", "vit_small_dinov3", EVA02)
STEPS, BATCH = 3, 4


class Combination(NamedTuple):
    method: str
    objective: str
    model: str
    wide: bool = False
    """Whether crops are twice as wide as high."""

    def __str__(self) -> str:
        return " ".join([*self[:3], *["wide"] * self.wide])


def combinations() -> Iterator[Combination]:
    """All that have a meaning: a ResNet and a ConvNeXt have no patches to mask."""
    for method in METHODS:
        for objective in OBJECTIVES:
            for model in MODELS:
                if method != "ibot" or model in MASKABLE:
                    yield Combination(method, objective, model)
    for objectives in TOGETHER:
        for method in ("none", *METHODS):
            yield Combination(method, objectives, "vit_tiny")
        for model in MODELS[1:]:
            # The features of a tiny ResNet are wider than those of the frozen encoder.
            fitting = objectives.replace("retain+", "") if model == "resnet50" else objectives
            yield Combination("none", fitting, model)
        yield Combination("none", objectives, "vit_tiny", wide=True)
    for method in METHODS:
        yield Combination(method, OBJECTIVES[-1], "vit_tiny", wide=True)
    for method, model in (("moby", "swin_tiny"), ("densecl", "resnet50"), ("dino", "convnext_tiny")):
        yield Combination(method, OBJECTIVES[-1], model, wide=True)


class Training:
    """Some steps of a tiny network, whose state can be taken and given back as a checkpoint's is."""

    def __init__(self, combination: Combination) -> None:
        optimizer = {"base_lr": 0.5, "warmup_epochs": 0, "freeze_last_layer_epochs": 0}
        settings = {**combination._asdict(), "epochs": STEPS, "optimizer": optimizer}
        self._wide = settings.pop("wide")
        if self._wide:
            settings |= wide_crops(tiny_config(**settings))
        config = tiny_config(**settings)
        self.student_teacher: StudentTeacher = tiny_student_teacher(**settings)
        _settle(self.student_teacher)
        self.optimizer = make_optimizer(config, self.student_teacher)
        self._schedule = make_schedule(config, steps_per_epoch=1)
        self._scale = 1 if combination.model == "vit_tiny" else 2

    def step(self, step: int) -> dict[str, float]:
        """Its losses by name."""
        views = tiny_views(BATCH, seed=step, scale=self._scale, wide=self._wide)
        hp = self._schedule(step)
        outcome = training_step(self.student_teacher, [views], self.optimizer, hp, self._schedule.config)
        assert outcome.finite
        return {name: float(outcome.values[name]) for name in ("loss", *self.student_teacher.loss_weights)}


@torch.no_grad()
def _settle(student_teacher: StudentTeacher) -> None:
    """Weights and queues that no version of torch or timm draws otherwise."""
    drawn = [(n, p) for n, p in student_teacher.named_parameters() if p.requires_grad]
    drawn += [(n, p) for n, p in student_teacher.named_parameters() if n.startswith("anchor.")]
    drawn += [(n, b) for n, b in student_teacher.named_buffers() if n.endswith(".keys")]
    for name, tensor in drawn:
        uniform = np.random.default_rng(zlib.crc32(name.encode())).random(tuple(tensor.shape)) - 0.5
        around = 1.0 if tensor.ndim == 1 and name.endswith("weight") else 0.0
        tensor.copy_(around + 0.4 * torch.from_numpy(uniform))
        if name.endswith(".keys"):
            tensor.copy_(F.normalize(tensor, dim=1))
    student_teacher.teacher.load_state_dict(student_teacher.student.state_dict())


def losses(combination: Combination) -> list[dict[str, float]]:
    training = Training(combination)
    return [training.step(step) for step in range(STEPS)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    recorded = {str(combination): losses(combination) for combination in combinations()}
    rounded = {k: [{n: float(f"{v:.7g}") for n, v in row.items()} for row in rows] for k, rows in recorded.items()}
    FILE.write_text(json.dumps(rounded, indent=1) + "\n")
