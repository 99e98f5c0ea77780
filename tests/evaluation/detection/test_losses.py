"""Losses of boxes against plain formulas, and targets of masks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from selfpatch.evaluation.detection.losses import box_loss, mask_loss, mask_targets
from selfpatch.evaluation.detection.roi_heads import STAGES
from selfpatch.evaluation.detection.samples import BoxSamples
from tests.helpers.boxes import giou, moved, offsets

BOXES = torch.tensor([[10.0, 10, 40, 30], [5, 8, 25, 50], [0, 0, 12, 9], [30, 30, 44, 52]])
TRUE = torch.tensor([[12.0, 9, 38, 33], [7, 8, 27, 47], [50, 50, 61, 62], [31, 28, 45, 55]])
LABELS = torch.tensor([2, 0, 1, 2])


def samples() -> list[BoxSamples]:
    parts = [slice(0, 2), slice(2, 4)]
    return [BoxSamples(BOXES[p], LABELS[p], torch.zeros(2).long(), TRUE[p], LABELS[p] < 0) for p in parts]


@pytest.mark.parametrize("stage", range(3))
def test_box_losses_are_those_of_a_plain_loop(stage: int) -> None:
    stds = STAGES["cascade"][stage].stds
    coder = BoxCoder(tuple(1 / std for std in stds))
    moves = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(stage))
    expected = {"l1": 0.0, "giou": 0.0}
    for box, true, label, move in zip(BOXES.tolist(), TRUE.tolist(), LABELS.tolist(), moves.tolist(), strict=True):
        if label:
            wanted = offsets(box, true, stds)
            expected["l1"] += sum(abs(a - b) for a, b in zip(move[label], wanted, strict=True))
            expected["giou"] += 10 * (1 - giou(moved(box, move[label], stds), true))
    assert box_loss("l1", moves, samples(), coder).item() == pytest.approx(expected["l1"], rel=1e-5)
    assert box_loss("giou", moves, samples(), coder).item() == pytest.approx(expected["giou"], rel=1e-5)


@pytest.mark.parametrize("kind", ["l1", "giou"])
def test_the_true_offsets_cost_nothing(kind: str) -> None:
    stds = STAGES["cascade"][2].stds
    moves = torch.zeros(4, 3, 4)
    for row, (box, true, label) in enumerate(zip(BOXES.tolist(), TRUE.tolist(), LABELS.tolist(), strict=True)):
        moves[row, label] = torch.tensor(offsets(box, true, stds))
    loss = box_loss(kind, moves, samples(), BoxCoder(tuple(1 / std for std in stds)))  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(0.0, abs=1e-4)


def test_a_giou_loss_pulls_boxes_that_do_not_touch() -> None:
    moves: Tensor = torch.zeros(4, 3, 4, requires_grad=True)
    box_loss("giou", moves, samples(), BoxCoder((10.0, 10.0, 5.0, 5.0))).backward()
    assert moves.grad is not None
    assert (moves.grad[2, 1, :2] < 0).all()  # the object is to the right and below
    assert not moves.grad[1].any()


def test_mask_targets_are_the_mask_seen_through_the_box() -> None:
    masks = torch.zeros(2, 40, 50, dtype=torch.uint8)
    masks[1, 8:22, 10:24] = 1
    boxes = torch.tensor([[10.0, 8.0, 38.0, 36.0], [3.0, 1.0, 31.0, 29.0]])
    targets = mask_targets(masks, boxes, torch.tensor([1, 1]), 28)
    assert torch.equal(targets[0], masks[1, 8:36, 10:38].float())
    assert torch.equal(targets[1], masks[1, 1:29, 3:31].float())
    assert mask_targets(masks, boxes[:0], torch.zeros(0, dtype=torch.int64), 28).shape == (0, 28, 28)


def test_no_box_on_an_object_costs_nothing_but_keeps_the_gradient() -> None:
    logits = torch.zeros(0, 3, 28, 28, requires_grad=True)
    loss = mask_loss(logits, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 28, 28))
    loss.backward()
    assert loss.item() == 0
