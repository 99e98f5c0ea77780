"""Recall of each image, since average precision is one number of the whole set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torchvision.ops import box_convert, box_iou

from selfpatch.evaluation.detection.dataset import Split
from selfpatch.evaluation.detection.predictions import Row, rows_by_image

RECALL = "recall@0.5 of boxes"
MIN_SCORE = MIN_IOU = 0.5


def recall_per_image(split: Split, boxes: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return the share of each image's objects that are found, in the form of `Result.per_image`.

    ::

        for each detection with a score of at least 1/2, in descending order:
            it finds the object of its class with the largest IoU, if that is at least 1/2;
            each object is found once

    Crowds are not objects; images without objects are left out. `boxes` are rows, as `detect_all` returns them.
    """
    found = rows_by_image(boxes)
    labels = {category: label for label, category in enumerate(split.category_ids, start=1)}
    recalls = {}
    for image in split.images:
        if objects := image.objects():
            confident = [row for row in found.get(image.id, []) if row["score"] >= MIN_SCORE]
            confident.sort(key=lambda row: -row["score"])
            boxes_of_objects = torch.tensor([one.box for one in objects], dtype=torch.float64)
            boxes_found = torch.tensor([row["bbox"] for row in confident], dtype=torch.float64).view(-1, 4)
            overlaps = box_iou(box_convert(boxes_found, "xywh", "xyxy"), boxes_of_objects)  # [detections, objects]
            is_left = torch.ones(len(objects), dtype=torch.bool)
            object_labels = torch.tensor([one.label for one in objects])
            for row, overlap in zip(confident, overlaps, strict=True):
                candidates = overlap * (is_left & (object_labels == labels[row["category_id"]]))
                if candidates.max() >= MIN_IOU:
                    is_left[candidates.argmax()] = False
            recalls[image.name] = {RECALL: int((~is_left).sum()) / len(objects)}
    return recalls
