"""Replay of DINOv2's losses with Sinkhorn-Knopp in place of centres: CLS tokens and masked patches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from selfpatch.losses import DINOConfig, DINOLoss, IBOTConfig, IBOTPatchLoss
from selfpatch.ops.cross_entropy import Scores, teacher_distribution
from selfpatch.ops.sinkhorn import sinkhorn, sinkhorn_center
from tests.parity.check import ENTRIES, TIGHT, Check, compare

GLOBAL_CROPS = 2


def replay_sinkhorn(bundle: Path) -> Iterator[Check]:
    """Compare assignments, losses and gradients of both kinds of tokens."""
    expected, t = json.loads((bundle / "expected.json").read_text()), load_file(bundle / "tensors.safetensors")
    yield from _image_tokens(expected, t)
    yield from _masked_patches(expected, t)


def _settings(expected: dict[str, Any]) -> dict[str, Any]:
    shared = {"student_temp": expected["student_temp"], "sinkhorn_iterations": expected["iterations"]}
    return {"centering": "sinkhorn", **shared}


def _scores(logits: Tensor) -> Scores:
    """Return given logits [..., K] as products with K prototypes."""
    return Scores(logits, torch.eye(logits.shape[-1]))


def _assignments(name: str, logits: Tensor, recorded: Tensor, temp: float, iterations: int) -> Iterator[Check]:
    yield compare(f"assignments of {name}", sinkhorn(logits, temp, iterations), recorded, TIGHT)
    center = sinkhorn_center(_scores(logits), temp, iterations)
    yield compare(
        f"assignments of {name}, centred", teacher_distribution(_scores(logits), center, temp), recorded, TIGHT
    )


def _image_tokens(expected: dict[str, Any], t: dict[str, Tensor]) -> Iterator[Check]:
    teacher, temp = t["cls.teacher_logits"], expected["cls.teacher_temp"]
    yield from _assignments("CLS tokens", teacher, t["cls.assignments"], temp, expected["iterations"])
    criterion = DINOLoss(DINOConfig(num_prototypes=teacher.shape[1], **_settings(expected)))
    crops = [t[f"cls.student_{kind}"].requires_grad_() for kind in ("global", "local")]
    by_view = [logits.unflatten(0, (-1, len(teacher) // GLOBAL_CROPS)) for logits in crops]
    targets = _scores(teacher.unflatten(0, (GLOBAL_CROPS, -1)))
    pairs = GLOBAL_CROPS * (GLOBAL_CROPS - 1 + len(by_view[1]))
    loss = criterion(_scores(torch.cat(by_view)), targets, temp)  # the mean over all pairs
    between_globals = criterion(_scores(by_view[0]), targets, temp) * GLOBAL_CROPS * (GLOBAL_CROPS - 1) / pairs
    yield compare("loss of global crops", between_globals, expected["cls.global_loss"], TIGHT)
    yield compare("loss of local crops", loss - between_globals, expected["cls.local_loss"], TIGHT)
    for kind, gradient in zip(("global", "local"), torch.autograd.grad(loss, crops), strict=True):
        yield compare(f"gradient of {kind} crops", gradient, t[f"cls.student_{kind}_grad"], ENTRIES)


def _masked_patches(expected: dict[str, Any], t: dict[str, Tensor]) -> Iterator[Check]:
    teacher, temp, mask = t["patch.teacher_logits"], expected["patch.teacher_temp"], t["patch.mask"].bool()
    masked = teacher[mask]
    yield from _assignments("masked patches", masked, t["patch.assignments"], temp, expected["iterations"])
    criterion = IBOTPatchLoss(IBOTConfig(num_prototypes=teacher.shape[-1], **_settings(expected)))
    student = t["patch.student_logits"].requires_grad_()
    loss = criterion(_scores(student[:, None]), _scores(teacher[:, None]), mask[:, None], temp)
    yield compare("loss of masked patches", loss, expected["patch.loss"], TIGHT)
    yield compare("gradient of patches", torch.autograd.grad(loss, student)[0], t["patch.grad"], ENTRIES)
