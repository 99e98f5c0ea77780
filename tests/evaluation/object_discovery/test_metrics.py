"""Intersection over union, the centre box, and AP without classes against pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import numpy as np
import pytest

from selfpatch.evaluation.object_discovery.dataset import Box
from selfpatch.evaluation.object_discovery.metrics import best_iou, centre_box, class_agnostic, method_row

Boxes = Sequence[Sequence[Box]]


def test_iou_in_pixels() -> None:
    """VOC's box 1 .. 10 is ten pixels wide; nothing is added to sides."""
    assert best_iou((0, 0, 10, 10), [(0, 0, 10, 20), (5, 0, 15, 10)]) == pytest.approx(0.5)
    assert best_iou((0, 0, 2, 2), [(1, 1, 3, 3)]) == pytest.approx(1 / 7)
    left, top, right, bottom = centre_box(100, 200)
    assert (right - left) * (bottom - top) == pytest.approx(100 * 200 / 2)
    assert ((left + right) / 2, (top + bottom) / 2) == pytest.approx((100, 50))


def of_pycocotools(found: Boxes, truth: Boxes) -> tuple[float, float, float]:
    """Return AP50, AP and AR of one category; a box of rank r has the score 1 / r."""
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rows(images: Boxes) -> list[dict]:
        return [
            {"id": 1000 * i + j + 1, "image_id": i, "category_id": 1, "bbox": [x, y, right - x, bottom - y],
             "iscrowd": 0, "area": (right - x) * (bottom - y), "score": 1 / (j + 1)}
            for i, boxes in enumerate(images) for j, (x, y, right, bottom) in enumerate(boxes)
        ]  # fmt: skip

    with contextlib.redirect_stdout(io.StringIO()):
        annotated, detected = COCO(), COCO()
        for coco, boxes in ((annotated, truth), (detected, found)):
            images = [{"id": i} for i in range(len(truth))]
            coco.dataset = {"images": images, "categories": [{"id": 1}], "annotations": rows(boxes)}
            coco.createIndex()
        scored = COCOeval(annotated, detected, "bbox")
        scored.evaluate()
        scored.accumulate()
        scored.summarize()
    return scored.stats[1], scored.stats[0], scored.stats[8]


def random_images(seed: int, num_images: int = 25) -> tuple[Boxes, Boxes]:
    """Return found and true boxes, of which some are near one another and some are missed or found twice."""
    rng = np.random.default_rng(seed)
    found, truth = [], []
    for _ in range(num_images):
        corners = rng.uniform(0, 100, (rng.integers(1, 5), 2))
        sides = rng.uniform(25, 60, corners.shape)
        boxes = np.concatenate([corners, corners + sides], axis=1)
        shown = boxes[rng.integers(len(boxes), size=rng.integers(1, 4))]
        found.append([tuple(box) for box in (shown + rng.normal(0, 3, shown.shape)).tolist()])
        truth.append([tuple(box) for box in boxes.tolist()])
    return found, truth


@pytest.mark.parametrize("seed", range(5))
def test_precision_and_recall_are_those_of_pycocotools(seed: int) -> None:
    found, truth = random_images(seed)
    np.testing.assert_allclose(class_agnostic(found, truth), of_pycocotools(found, truth), atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_of_true_boxes_of_equal_overlap_the_last_is_found_as_by_pycocotools(seed: int) -> None:
    """The second box of an image overlaps one of the two that the first one overlaps alike."""
    rng = np.random.default_rng(seed)
    found, truth = [], []
    for _ in range(20):
        left, right = (0.0, 0.0, 12.0, 10.0), (8.0, 0.0, 20.0, 10.0)
        truth.append([left, right] if rng.random() < 0.5 else [right, left])
        found.append([(4.0, 0.0, 16.0, 10.0), left if rng.random() < 0.7 else right])
    np.testing.assert_allclose(class_agnostic(found, truth), of_pycocotools(found, truth), atol=1e-12)


def test_precision_by_hand() -> None:
    """One of two objects by the first box, the other by the third: precisions 1 and 2/3 at recalls 1/2 and 1."""
    a, b, nothing = (0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 70.0, 90.0), (200.0, 0.0, 210.0, 10.0)
    scores = class_agnostic([[a, nothing, b]], [[a, b]])
    assert scores.ap50 == scores.ap == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert scores.ar == 1
    assert class_agnostic([[a, a]], [[a, b]])._replace(ap=0) == pytest.approx((51 / 101, 0, 0.5)), "found once"
    assert class_agnostic([[nothing]], [[a]]) == (0, 0, 0)
    assert class_agnostic([[a]], [[a]]) == (1, 1, 1)
    row = method_row("maskcut", [[nothing, a], [a]], [[a], [a]])
    assert (row["CorLoc"], row["boxes"], row["AR"]) == (0.5, 3, 1), "CorLoc is that of the first box"


def test_a_planted_mistake_is_noticed() -> None:
    """Sides that are swapped, or boxes of another image."""
    found, truth = random_images(0)
    right = class_agnostic(found, truth)
    assert right.ap50 > 0.3
    swapped = [[(top, left, bottom, right) for left, top, right, bottom in boxes] for boxes in found]
    assert class_agnostic(swapped, truth).ap50 < right.ap50 / 2
    assert class_agnostic(found[1:] + found[:1], truth).ap50 < right.ap50 / 2
