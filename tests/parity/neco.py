"""Replay of NeCo: soft sorting by both networks, the loss of a pair of crops, and the whole loss with its queue."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from selfpatch.losses.neco import NeCoConfig, NeCoLoss, order_loss, soft_order
from selfpatch.ops.roi_align import overlap_rois
from selfpatch.ops.soft_sort import soft_sort
from tests.parity.check import ENTRIES, TIGHT, Check, compare

STEEP = 1e-4
"""Tolerance of shares of ranks: comparators of steepness 100 magnify rounding."""
GLOBAL_CROPS = 2


class RecordedReferences(NeCoLoss):
    """NeCo's loss with the recorded queue and draws, one draw for each pair."""

    def __init__(self, dim: int, config: NeCoConfig, queue: Tensor, rows: Tensor) -> None:
        super().__init__(dim, GLOBAL_CROPS, config)
        self.references = torch.cat([of_crop[of_crop_rows] for of_crop, of_crop_rows in zip(queue, rows, strict=True)])
        self.num_drawn = 0

    def draw_references(
        self, aligned: Tensor, queue: tuple[Tensor, Tensor] | None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return the references [B, N, D] of the next pair."""
        self.num_drawn += 1
        return self.references[self.num_drawn - 1].view_as(aligned)


def replay_neco(bundle: Path) -> Iterator[Check]:
    """Compare sorted values, permutations, losses and gradients, and the regions of the pairs."""
    expected, t = json.loads((bundle / "expected.json").read_text()), load_file(bundle / "tensors.safetensors")
    for name in ("sort4", "sort9", "sort49", "odd_even5"):
        network = "odd_even" if name.startswith("odd_even") else "bitonic"
        values, permutation = soft_sort(t[f"{name}.values"], expected[f"{name}.steepness"], network)
        yield compare(f"{name}: sorted values", values, t[f"{name}.sorted"], TIGHT)
        yield compare(f"{name}: permutation", permutation, t[f"{name}.permutation"], STEEP)
    for name in ("pair3", "pair7"):
        yield from _pair(name, expected, t)
    yield from _regions(expected, t)
    yield from _all_pairs(expected, t)


def _pair(name: str, expected: dict[str, Any], t: dict[str, Tensor]) -> Iterator[Check]:
    student, teacher, references = (t[f"{name}.{part}"].flatten(1, 2) for part in ("student", "teacher", "references"))
    steepness = expected[f"{name}.steepness"]
    for side, patches in (("student", student), ("teacher", teacher)):
        if (recorded := t.get(f"{name}.{side}_permutation")) is not None:
            order = soft_order(patches, references, steepness)
            yield compare(f"{name}: order of the {side}", order, recorded.flatten(1, 2), STEEP)
    loss = order_loss(student.requires_grad_(), teacher, references, steepness).mean()
    yield compare(f"{name}: loss", loss, expected[f"{name}.loss"], TIGHT)
    gradient = torch.autograd.grad(loss, student)[0]
    yield compare(f"{name}: gradient", gradient, t[f"{name}.student_grad"].flatten(1, 2), ENTRIES)


def _boxes(t: dict[str, Tensor]) -> Tensor:
    """Return the recorded crops [V, B, 5] as (left, top, width, height, not flipped)."""
    corners = t["full.crop_boxes_xyxy"].transpose(0, 1)
    begin, end = corners[..., :2], corners[..., 2:]
    return torch.cat([begin, end - begin, torch.zeros_like(begin[..., :1])], -1)


def _maps(embeddings: Tensor, images: int, side: int) -> Tensor:
    """Return maps [views, B, side, side, D] of view-major rows."""
    return embeddings.view(-1, images, side, side, embeddings.shape[1])


def _sides(expected: dict[str, Any]) -> list[int]:
    return [size // expected["full.patch_size"] for size in expected["full.crop_sizes"]]


def _regions(expected: dict[str, Any], t: dict[str, Tensor]) -> Iterator[Check]:
    """Compare the overlap of each pair, in patches of the global crop and of the other one."""
    boxes, sides = _boxes(t), _sides(expected)
    views, images = boxes.shape[:2]
    empty = [torch.zeros(images, sides[v >= GLOBAL_CROPS], sides[v >= GLOBAL_CROPS], 1) for v in range(views)]
    of_global, of_other = (t[f"full.{name}_boxes"] / expected["full.patch_size"] for name in ("gc", "all"))
    for c in range(GLOBAL_CROPS):
        for v in (v for v in range(views) if v != c):
            region = overlap_rois(boxes[c], boxes[v], empty[c])
            yield compare(f"full: region of crop {c} with {v}", region, of_global[:, c, v], TIGHT)
            region = overlap_rois(boxes[v], boxes[c], empty[v])
            yield compare(f"full: region of crop {v} in {c}", region, of_other[:, v, c], TIGHT)


def _all_pairs(expected: dict[str, Any], t: dict[str, Tensor]) -> Iterator[Check]:
    boxes, (side, local_side) = _boxes(t), _sides(expected)
    images, queue = boxes.shape[1], t["full.queue"]
    config = NeCoConfig(
        overlap_size=expected["full.roi"], steepness=expected["full.steepness"], queue_size=queue.shape[1]
    )
    rows = t["full.reference_rows"].unflatten(0, (GLOBAL_CROPS, -1))  # [G, V - 1, B * N]
    criterion = RecordedReferences(queue.shape[2], config, queue, rows)
    student, local = (t[f"full.student_{kind}"].requires_grad_() for kind in ("globals", "locals"))
    teacher = _maps(t["full.teacher_globals"], images, side)
    loss = criterion(_maps(student, images, side), _maps(local, images, local_side), teacher, boxes)
    yield compare("full: loss", loss, expected["full.loss"], TIGHT)
    for kind, gradient in zip(("globals", "locals"), torch.autograd.grad(loss, (student, local)), strict=True):
        yield compare(f"full: gradient of {kind}", gradient, t[f"full.student_{kind}_grad"], ENTRIES)
