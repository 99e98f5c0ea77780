"""Average precision of boxes and of masks by pycocotools, over all categories and of each, and recall of each image."""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision.ops import box_convert, box_iou

from selfpatch.evaluation.coco import read_instances
from selfpatch.evaluation.detection.dataset import Split
from selfpatch.evaluation.detection.masks import packed, pycocotools
from selfpatch.evaluation.detection.predictions import Row, rows_by_image
from selfpatch.evaluation.result import Cell

STATISTICS = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")
"""Names of the first six of pycocotools' twelve statistics."""
RECALL = "recall@0.5 of boxes"
MIN_SCORE = MIN_IOU = 0.5


class Precision(NamedTuple):
    """Average precision of boxes or of masks."""

    overall: Mapping[str, float]
    """Values in [0, 1] by the names of STATISTICS; without those that no object counts for."""
    of_category: Mapping[int, float]
    """AP by category id, of the categories that have objects."""


class GroundTruth:
    """Annotations of a split, ready to score against.

    An object that has a box only does not count when masks are scored: detections in its box are ignored, as in a
    crowd. `images` are the ids of the images that count.
    """

    def __init__(self, annotations: Path, images: Sequence[int]) -> None:
        content = read_instances(annotations)
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        rows = [{**row, "area": _area(row, *sizes[row["image_id"]])} for row in content["annotations"]]
        self._coco = _indexed({**content, "annotations": rows})
        self._masks = _indexed({**content, "annotations": [_for_masks(row) for row in rows]})
        self.images = list(images)

    def objects(self) -> dict[int, int]:
        """Return the number of objects of each category that has any, by id; crowds are not counted."""
        found = self._coco.loadAnns(self._coco.getAnnIds(imgIds=self.images, iscrowd=False))
        ids, counts = np.unique([one["category_id"] for one in found], return_counts=True)
        return {int(category): int(count) for category, count in zip(ids, counts, strict=True)}

    def precision(self, results: Sequence[Row], kind: str) -> Precision:
        """Score the rows of a results file; `kind` is `bbox` or `segm`."""
        truth = self._masks if kind == "segm" else self._coco
        with contextlib.redirect_stdout(io.StringIO()):
            scored = pycocotools("cocoeval").COCOeval(truth, _detected(truth, results), kind)
            scored.params.imgIds = self.images
            scored.evaluate()
            scored.accumulate()
            scored.summarize()
        pairs = zip(STATISTICS, scored.stats[: len(STATISTICS)], strict=True)
        all_values = scored.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, category], all areas, 100 per image
        per_category = {
            category: float(values[values > -1].mean())
            for category, values in zip(scored.params.catIds, np.moveaxis(all_values, 2, 0), strict=True)
            if (values > -1).any()
        }
        return Precision({name: float(value) for name, value in pairs if value > -1}, per_category)


def average_precision(
    split: Split, boxes: Sequence[Row], masks: Sequence[Row], truth: GroundTruth | None = None
) -> tuple[dict[str, float], list[dict[str, Cell]]]:
    """Return the metrics to quote, and a row for each category with objects; its AP is nan if none has a mask.

    Boxes and masks are the rows of results files. `truth` holds the annotations of the split if they have been read.
    """
    truth = truth or GroundTruth(split.annotations, [image.id for image in split.images])
    scores = {"box": truth.precision(boxes, "bbox"), "mask": truth.precision(masks, "segm")}
    metrics = {f"{kind} {name}": value for kind, score in scores.items() for name, value in score.overall.items()}
    names = dict(zip(split.category_ids, split.category_names, strict=True))
    rows: list[dict[str, Cell]] = []
    for category, count in truth.objects().items():
        precisions = {f"{kind} AP": score.of_category.get(category, math.nan) for kind, score in scores.items()}
        rows.append({"category": names[category], "objects": count, **precisions})
    return metrics, rows


def _area(row: Mapping[str, Any], height: int, width: int) -> float:
    """Return the annotated area, else the mask's as in COCO, else the box's."""
    segmentation: Any = row["segmentation"]
    if row["area"] is not None:
        return float(row["area"])
    if not segmentation:
        return float(row["bbox"][2] * row["bbox"][3])
    if not isinstance(segmentation, dict):
        segmentation = tuple(np.array(polygon, np.float64) for polygon in segmentation)
    return float(pycocotools("mask").area(packed(segmentation, height, width)))


def _for_masks(row: Row) -> Row:
    if row["segmentation"]:
        return row
    left, top, width, height = row["bbox"]
    right, bottom = left + width, top + height
    return {**row, "iscrowd": 1, "segmentation": [[left, top, right, top, right, bottom, left, bottom]]}


def _indexed(content: Mapping[str, Any]) -> Any:
    coco = pycocotools("coco").COCO()
    coco.dataset = {**content, "annotations": [dict(row) for row in content["annotations"]]}  # scoring changes the rows
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _detected(truth: Any, results: Sequence[Row]) -> Any:
    if results:
        return truth.loadRes([dict(row) for row in results])  # loading changes the rows
    return _indexed({**truth.dataset, "annotations": []})


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
