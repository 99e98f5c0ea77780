"""Training samples against plain loops over boxes and objects."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selfpatch.evaluation.detection.samples import (
    IGNORED,
    TrainingTarget,
    draw_balanced,
    label_anchors,
    sample_boxes,
)
from tests.helpers.boxes import iou


def random_boxes(number: int, generator: torch.Generator, side: float = 60.0) -> Tensor:
    corners = torch.rand(number, 2, generator=generator) * side
    return torch.cat([corners, corners + 4 + torch.rand(number, 2, generator=generator) * side / 2], dim=1)


def target_of(boxes: Tensor, size: tuple[int, int] = (64, 80), seed: int = 0) -> TrainingTarget:
    return {
        "boxes": boxes,
        "labels": torch.arange(len(boxes)) % 3 + 1,
        "masks": torch.ones(len(boxes), *size, dtype=torch.uint8),
        "generator": torch.Generator().manual_seed(seed),
    }


@pytest.mark.parametrize("min_iou", [0.5, 0.6, 0.7])
def test_boxes_are_matched_as_by_a_plain_loop(min_iou: float) -> None:
    generator = torch.Generator().manual_seed(3)
    objects = random_boxes(4, generator)
    proposals = torch.cat([objects + torch.randn(4, 4, generator=generator) * shift for shift in (1, 2, 3, 5, 8)])
    target = target_of(objects)
    samples = sample_boxes(proposals, target, min_iou, num=1000)
    everything = torch.cat([proposals, objects]).tolist()
    assert sorted(samples.boxes.tolist()) == sorted(everything)
    seen = set()
    for box, label, matched, true_box, is_object in zip(
        samples.boxes.tolist(), samples.labels, samples.matched, samples.true_boxes, samples.is_object, strict=True
    ):
        overlaps = [iou(box, one) for one in objects.tolist()]
        best = max(range(4), key=lambda index: overlaps[index])
        expected = int(target["labels"][best]) if overlaps[best] >= min_iou else 0
        assert int(label) == expected
        if expected:
            assert int(matched) == best
            assert torch.equal(true_box, objects[best])
        assert bool(is_object) == (everything.index(box) >= len(proposals))
        seen.add(expected)
    assert 0 in seen
    assert len(seen) > 2


def test_an_image_without_objects_gives_background() -> None:
    proposals = random_boxes(6, torch.Generator().manual_seed(0))
    samples = sample_boxes(proposals, target_of(torch.zeros(0, 4)), 0.5, num=4)
    assert samples.labels.tolist() == samples.matched.tolist() == [0] * 4
    assert torch.equal(samples.true_boxes, samples.boxes)
    assert not samples.is_object.any()


def test_a_quarter_of_the_drawn_boxes_lies_on_objects() -> None:
    labels = torch.tensor([1] * 40 + [0] * 40 + [-1] * 40)
    chosen = draw_balanced(labels, 20, 0.25, torch.Generator().manual_seed(0))
    assert labels[chosen].tolist() == [1] * 5 + [0] * 15
    assert len(set(chosen.tolist())) == 20
    few = draw_balanced(labels[38:], 20, 0.25, torch.Generator().manual_seed(0))
    assert labels[38:][few].tolist() == [1] * 2 + [0] * 18
    again = draw_balanced(labels, 20, 0.25, torch.Generator().manual_seed(0))
    other = draw_balanced(labels, 20, 0.25, torch.Generator().manual_seed(1))
    assert torch.equal(chosen, again)
    assert not torch.equal(chosen, other)


@pytest.mark.parametrize(("min_best_iou", "inside_only"), [(0.0, False), (0.0, True), (0.3, False), (0.3, True)])
def test_anchors_are_labelled_as_by_a_plain_loop(min_best_iou: float, inside_only: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    objects = torch.cat([random_boxes(3, generator), torch.tensor([[1.0, 1.0, 4.0, 60.0]])])
    anchors = torch.cat([random_boxes(60, generator), objects[:3] + 1.0, torch.tensor([[-2.0, 1.0, 4.0, 20.0]])])
    labels, true_boxes = label_anchors(
        anchors, target_of(objects), min_best_iou=min_best_iou, inside_only=inside_only, num=1000
    )
    height, width = 64, 80
    rows: list[list[float]] = anchors.tolist()
    usable = [not inside_only or (box[0] >= 0 and box[1] >= 0 and box[2] < width and box[3] < height) for box in rows]
    overlaps = [[iou(box, one) for one in objects.tolist()] for box in rows]
    best = [max(row[number] for row, use in zip(overlaps, usable, strict=True) if use) for number in range(4)]
    for index, (row, use) in enumerate(zip(overlaps, usable, strict=True)):
        largest = max(row)
        expected = 1.0 if largest >= 0.7 else 0.0 if largest < 0.3 else IGNORED
        reached = [
            value == pytest.approx(top) and top >= max(min_best_iou, 1e-6) for value, top in zip(row, best, strict=True)
        ]
        expected = 1.0 if any(reached) else expected
        assert float(labels[index]) == (expected if use else IGNORED)
        if use:
            assert torch.equal(true_boxes[index], objects[row.index(largest)])
    assert best[3] < 0.3
    assert (labels == 1).sum() >= 2
    assert all(usable) is not inside_only


def test_half_of_the_drawn_anchors_lies_on_objects_and_the_others_are_ignored() -> None:
    objects = torch.tensor([[10.0, 10.0, 30.0, 30.0]])
    anchors = torch.cat([objects + 0.1 * torch.randn(50, 4), objects + 40.0 + torch.rand(50, 4)])
    labels, _ = label_anchors(anchors, target_of(objects), min_best_iou=0.3, inside_only=False, num=16)
    assert [int((labels == value).sum()) for value in (1, 0, -1)] == [8, 8, 84]
    none, boxes = label_anchors(anchors, target_of(objects[:0]), min_best_iou=0.3, inside_only=False, num=16)
    assert [int((none == value).sum()) for value in (1, 0, -1)] == [0, 16, 84]
    assert not boxes.any()
