"""Average precision of boxes and of masks by pycocotools, over all categories and of each."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfpatch.evaluation.detection.annotations import read_annotations
from selfpatch.evaluation.detection.dataset import Split
from selfpatch.evaluation.detection.masks import packed, pycocotools
from selfpatch.evaluation.result import Cell

Row = Mapping[str, Any]
STATISTICS = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")
"""Names of the first six of pycocotools' twelve statistics."""


@dataclass(frozen=True)
class Precision:
    """Average precision of boxes or of masks.

    Attributes:
        overall: values in [0, 1] by the names of STATISTICS; without those that no object counts for.
        of_category: AP by category id, of the categories that have objects.
    """

    overall: Mapping[str, float]
    of_category: Mapping[int, float]


class GroundTruth:
    """Annotations of a split, ready to score against.

    An object that has a box only does not count when masks are scored: detections in its box are ignored, as in a
    crowd. `images` are the ids of the images that count.
    """

    def __init__(self, annotations: Path, images: Sequence[int]) -> None:
        content = read_annotations(annotations)
        rows = _with_areas(content["annotations"], {image["id"]: image for image in content["images"]})
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
    box, mask = truth.precision(boxes, "bbox"), truth.precision(masks, "segm")
    metrics = {f"box {name}": value for name, value in box.overall.items()}
    metrics |= {f"mask {name}": value for name, value in mask.overall.items()}
    names = dict(zip(split.category_ids, split.category_names, strict=True))
    rows: list[dict[str, Cell]] = [
        {
            "category": names[category],
            "objects": count,
            "box AP": box.of_category.get(category, math.nan),
            "mask AP": mask.of_category.get(category, math.nan),
        }
        for category, count in truth.objects().items()
    ]
    return metrics, rows


def _with_areas(rows: Sequence[Row], images: Mapping[int, Row]) -> list[Row]:
    """Fill in missing areas: that of the mask as in COCO, or of the box if there is no mask."""
    filled = []
    for row in rows:
        if row["area"] is None:
            image = images[row["image_id"]]
            row = {**row, "area": _area(row, image["height"], image["width"])}
        filled.append(row)
    return filled


def _area(row: Row, height: int, width: int) -> float:
    segmentation: Any = row["segmentation"]
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
