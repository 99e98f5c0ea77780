"""Replay of distillation from a frozen encoder: matched patches, and similarities within an image and to a queue."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from selfpatch.losses.distill import (
    PatchDistillationConfig,
    PatchDistillationLoss,
    PatchSimilarityLoss,
    resize_bilinear,
    similarity_divergence,
)
from selfpatch.ops.contrast import l2_normalize
from tests.parity.check import ENTRIES, TIGHT, Check, compare

MATCHES = {
    "patch.cosine": PatchDistillationConfig(cosine=1, smooth_l1=0),
    "patch.smooth_l1": PatchDistillationConfig(cosine=0, smooth_l1=1),
    "patch.cos09_smoothl1_01": PatchDistillationConfig(),
    "theia.cosine_of_whole_image": PatchDistillationConfig(cosine=1, smooth_l1=0, cosine_over="image"),
    "mse": PatchDistillationConfig(cosine=0, smooth_l1=0, mse=1),
}
"""Recorded loss -> our settings."""


def replay_distillation(bundle: Path) -> Iterator[Check]:
    """Compare the projected map, and loss and gradient of every kind."""
    expected, t = json.loads((bundle / "expected.json").read_text()), load_file(bundle / "tensors.safetensors")
    student, teacher, temp = t["student"], t["teacher"], expected["temperature"]
    dims = student.shape[-1], teacher.shape[-1]
    projected = nn.functional.linear(student, t["weight"], t["bias"])
    yield compare("projected map", resize_bilinear(projected, teacher.shape[1:3]), t["projected"], TIGHT)
    losses: dict[str, nn.Module] = {name: PatchDistillationLoss(*dims, config) for name, config in MATCHES.items()}
    losses["v3.local"] = PatchSimilarityLoss(*dims, temp)
    for name, criterion in losses.items():
        criterion.load_state_dict({"projection.weight": t["weight"], "projection.bias": t["bias"]})
        x = student.clone().requires_grad_()
        yield from _loss_and_gradient(name, criterion(x, teacher), x, expected[name], t[f"{name}.grad"])
    x, keys = t["student_image_projected"].requires_grad_(), l2_normalize(t["queue"])
    divergence = similarity_divergence(l2_normalize(x), l2_normalize(t["teacher_image"]), (keys, keys), temp)
    yield from _loss_and_gradient("v3.global", divergence.mean(), x, expected["v3.global"], t["v3.global.grad"])


def _loss_and_gradient(name: str, value: Tensor, x: Tensor, loss: float, gradient: Tensor) -> Iterator[Check]:
    yield compare(f"{name}: loss", value, loss, TIGHT)
    yield compare(f"{name}: gradient", torch.autograd.grad(value, x)[0], gradient, ENTRIES)
