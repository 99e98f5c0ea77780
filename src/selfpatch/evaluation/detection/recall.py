"""How much of each single image is found: a number per image, where average precision is one of the whole set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from selfpatch.evaluation.detection.dataset import Box, Instance, Split
from selfpatch.evaluation.detection.predictions import Row, rows_by_image

RECALL = "recall@0.5 of boxes"
LEAST_SCORE = LEAST_OVERLAP = 0.5


def recall_per_image(split: Split, boxes: Sequence[Row]) -> dict[str, dict[str, float]]:
    """The share of each image's objects that is found, as `Result.per_image` has it.

        for each detection of a score of at least 1/2, the surest first:
            it finds the object of its class that it overlaps most, if their IoU is at least 1/2;
            each object is found once

    Crowds are no objects; images without objects are left out.

    Args:
        split: the truth.
        boxes: rows of boxes, as `detect_all` gives them.
    """
    found = rows_by_image(boxes)
    labels = {category: label for label, category in enumerate(split.category_ids, start=1)}
    recalls = {}
    for image in split.images:
        objects = image.objects()
        if objects:
            sure = [row for row in found.get(image.id, []) if row["score"] >= LEAST_SCORE]
            sure.sort(key=lambda row: -row["score"])
            matched = _matched(objects, [(labels[row["category_id"]], _corners(row["bbox"])) for row in sure])
            recalls[image.name] = {RECALL: matched / len(objects)}
    return recalls


def _matched(objects: Sequence[Instance], detections: Iterable[tuple[int, Box]]) -> int:
    left = list(objects)
    for label, box in detections:
        overlaps = [overlap(one.box, box) if one.label == label else 0.0 for one in left]
        best = int(np.argmax(overlaps)) if left else -1
        if left and overlaps[best] >= LEAST_OVERLAP:
            left.pop(best)
    return len(objects) - len(left)


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (a, b)]
    return width * height / (sum(areas) - width * height)


def _corners(bbox: Sequence[float]) -> Box:
    left, top, width, height = bbox
    return left, top, left + width, top + height
