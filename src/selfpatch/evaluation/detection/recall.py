"""Recall of each image, since average precision is one number of the whole set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from selfpatch.evaluation.detection.dataset import Box, Instance, Split
from selfpatch.evaluation.detection.predictions import Row, rows_by_image

RECALL = "recall@0.5 of boxes"
MIN_SCORE = MIN_IOU = 0.5


def recall_per_image(split: Split, boxes: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return the share of each image's objects that are found, in the form of `Result.per_image`.

    ::

        for each detection with a score of at least 1/2, in descending order:
            it finds the object of its class with the largest IoU, if that is at least 1/2;
            each object is found once

    Crowds are not objects; images without objects are left out.

    Args:
        split: split with the true objects.
        boxes: rows of boxes, as `detect_all` returns them.
    """
    found = rows_by_image(boxes)
    labels = {category: label for label, category in enumerate(split.category_ids, start=1)}
    recalls = {}
    for image in split.images:
        objects = image.objects()
        if objects:
            confident = [row for row in found.get(image.id, []) if row["score"] >= MIN_SCORE]
            confident.sort(key=lambda row: -row["score"])
            matched = _matched(objects, [(labels[row["category_id"]], _corners(row["bbox"])) for row in confident])
            recalls[image.name] = {RECALL: matched / len(objects)}
    return recalls


def _matched(objects: Sequence[Instance], detections: Iterable[tuple[int, Box]]) -> int:
    left = list(objects)
    for label, box in detections:
        overlaps = [iou(one.box, box) if one.label == label else 0.0 for one in left]
        best = int(np.argmax(overlaps)) if left else -1
        if left and overlaps[best] >= MIN_IOU:
            left.pop(best)
    return len(objects) - len(left)


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (a, b)]
    return width * height / (sum(areas) - width * height)


def _corners(bbox: Sequence[float]) -> Box:
    left, top, width, height = bbox
    return left, top, left + width, top + height
