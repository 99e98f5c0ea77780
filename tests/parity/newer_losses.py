"""Replay of standalone losses: PaKA with its alignment of crops, Gram anchoring, and KoLeo."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from selfpatch.losses.gram import GramConfig, GramLoss, resize_patches
from selfpatch.losses.koleo import KoLeoLoss, nearest_others
from selfpatch.losses.paka import PaKALoss
from selfpatch.ops.contrast import l2_normalize
from selfpatch.ops.roi_align import align_overlap, overlap_rois
from tests.parity.check import ENTRIES, TIGHT, Check, compare, compare_exactly

GRAMS = {
    "published": GramConfig(),
    "batch_level": GramConfig(scope="batch"),
    "remove_neg": GramConfig(negatives="drop"),
    "remove_teacher_neg": GramConfig(negatives="drop_teacher"),
    "unnormalised": GramConfig(normalise=False),
}
"""Recorded variant -> our settings."""


def _read(bundle: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    return json.loads((bundle / "expected.json").read_text()), load_file(bundle / "tensors.safetensors")


def _loss_and_gradient(
    name: str, loss_of: Callable[[Tensor], Tensor], x: Tensor, loss: float, gradient: Tensor
) -> Iterator[Check]:
    x = x.clone().requires_grad_()
    value = loss_of(x)
    yield compare(f"{name}: loss", value, loss, TIGHT)
    yield compare(f"{name}: gradient", torch.autograd.grad(value, x)[0], gradient, ENTRIES)


def replay_koleo(bundle: Path) -> Iterator[Check]:
    """Compare the nearest others, and loss and gradient of one view and of two."""
    expected, t = _read(bundle)
    yield compare_exactly("nearest others", nearest_others(l2_normalize(t["x"])), t["neighbours"].long())
    criterion = KoLeoLoss()
    yield from _loss_and_gradient("one view", criterion, t["x"], expected["loss"], t["grad"])
    wanted = expected["two_globals_sum"], t["two_globals_grad"]
    yield from _loss_and_gradient("two views", lambda x: criterion(x.unflatten(0, (2, -1))), t["x"], *wanted)


def replay_gram(bundle: Path) -> Iterator[Check]:
    """Compare loss and gradient of every variant, and a teacher of twice the resolution."""
    expected, t = _read(bundle)
    student, teacher = t["student"], t["teacher"]
    for name, config in GRAMS.items():
        criterion = GramLoss(config)
        wanted = expected[f"{name}.loss"], t[f"{name}.grad"]
        yield from _loss_and_gradient(name, lambda x, criterion=criterion: criterion(x, teacher), student, *wanted)
    side = round(student.shape[1] ** 0.5)
    resized = resize_patches(t["highres.teacher_map"], (side, side)).flatten(1, 2)
    yield compare("resized teacher", resized, t["highres.teacher_resized"], TIGHT)
    wanted = expected["highres.loss"], t["highres.grad"]
    yield from _loss_and_gradient("highres", lambda x: GramLoss()(x, resized), student, *wanted)


def replay_paka(bundle: Path) -> Iterator[Check]:
    """Compare loss and gradient of given patches, and of patches aligned between two crops."""
    expected, t = _read(bundle)
    criterion, student, teacher = PaKALoss(), t["student"], t["teacher"]
    mask = t["mask"].bool()
    wanted = expected["plain.loss"], t["plain.grad"]
    yield from _loss_and_gradient("plain", lambda x: criterion(x, teacher), student, *wanted)
    wanted = expected["masked.loss"], t["masked.grad"]
    yield from _loss_and_gradient("masked", lambda x: criterion(x, teacher, mask), student, *wanted)
    yield compare("all masked: loss", criterion(student, teacher, mask | True), expected["all_masked.loss"], TIGHT)
    yield from _constant_image(expected, t)
    yield from _alignment(expected, t)


def _constant_image(expected: dict[str, Any], t: dict[str, Tensor]) -> Iterator[Check]:
    """Compare where all patches of image 1 are equal: its own gradient is 0, and the recorded one only rounding."""
    student, recorded, others = t["student"].clone(), t["constant_image.grad"], [0, 2, 3]
    student[1] = student[1, :1]
    loss = PaKALoss()(student.requires_grad_(), t["teacher"])
    gradient = torch.autograd.grad(loss, student)[0]
    yield compare("constant image: loss", loss, expected["constant_image.loss"], TIGHT)
    yield compare("constant image: gradient of the others", gradient[others], recorded[others], ENTRIES)
    own = gradient[1].abs().max() / recorded.abs().max()
    yield Check("constant image: its own gradient", float(own), ENTRIES)


def _alignment(expected: dict[str, Any], t: dict[str, Tensor]) -> Iterator[Check]:
    maps, boxes = ([t[f"align.{side}_{name}"] for side in ("student", "teacher")] for name in ("map", "boxes"))
    for name, regions in (
        ("student", overlap_rois(boxes[0], boxes[1], maps[0])),
        ("teacher", overlap_rois(boxes[1], boxes[0], maps[1])),
    ):
        yield compare(f"align: regions of the {name}", regions, t[f"align.{name}_rois"], TIGHT)
    grid = tuple(expected["align.grid"])
    student, teacher, overlaps = align_overlap(*maps, *boxes, grid)
    yield compare_exactly("align: overlaps", overlaps, torch.ones_like(overlaps))
    yield compare("align: student", student, t["align.student"], TIGHT)
    yield compare("align: teacher", teacher, t["align.teacher"], TIGHT)

    def loss_of(student_maps: Tensor) -> Tensor:
        student, teacher, _ = align_overlap(student_maps, maps[1], *boxes, grid)
        return PaKALoss()(student, teacher)

    wanted = expected["align.loss"], t["align.student_map_grad"]
    yield from _loss_and_gradient("align", loss_of, maps[0], *wanted)
