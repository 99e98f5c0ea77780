"""Average precision by pycocotools, of boxes and of masks, over all categories and of each."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfpatch.evaluation.detection.annotations import read_annotations
from selfpatch.evaluation.detection.masks import packed, pycocotools

Row = Mapping[str, Any]
STATISTICS = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")
"""The first of pycocotools' twelve."""


@dataclass(frozen=True)
class Precision:
    """Of boxes or of masks.

    Attributes:
        overall: by the names of STATISTICS, in [0, 1]; without those that no object counts for.
        of_category: AP by category id, of those that have objects.
    """

    overall: Mapping[str, float]
    of_category: Mapping[int, float]


class GroundTruth:
    """The annotations of a split, ready to score against.

    An object that has a box only is no object where masks are scored: what is detected in its box is ignored there, as
    in a crowd.

    Args:
        annotations: the JSON file.
        images: ids of those that count.

    Raises:
        ValueError: an annotation cannot be used.
    """

    def __init__(self, annotations: Path, images: Sequence[int]) -> None:
        content = read_annotations(annotations)
        rows = _with_areas(content["annotations"], {image["id"]: image for image in content["images"]})
        self._coco = _indexed({**content, "annotations": rows})
        self._masks = _indexed({**content, "annotations": [_for_masks(row) for row in rows]})
        self.images = list(images)

    def objects(self) -> dict[int, int]:
        """How many objects each category has, crowds not counted; those that have any, by id."""
        found = self._coco.loadAnns(self._coco.getAnnIds(imgIds=self.images, iscrowd=False))
        ids, counts = np.unique([one["category_id"] for one in found], return_counts=True)
        return {int(category): int(count) for category, count in zip(ids, counts, strict=True)}

    def precision(self, results: Sequence[Row], kind: str) -> Precision:
        """Scores the rows of a results file.

        Args:
            results: rows of COCO's results format.
            kind: `bbox` or `segm`.
        """
        truth = self._masks if kind == "segm" else self._coco
        with contextlib.redirect_stdout(io.StringIO()):
            scored = pycocotools("cocoeval").COCOeval(truth, _detected(truth, results), kind)
            scored.params.imgIds = self.images
            scored.evaluate()
            scored.accumulate()
            scored.summarize()
        pairs = zip(STATISTICS, scored.stats[: len(STATISTICS)], strict=True)
        of_all = scored.eval["precision"][:, :, :, 0, -1]  # [IoU, recall, category], all areas, 100 an image
        per_category = {
            category: float(values[values > -1].mean())
            for category, values in zip(scored.params.catIds, np.moveaxis(of_all, 2, 0), strict=True)
            if (values > -1).any()
        }
        return Precision({name: float(value) for name, value in pairs if value > -1}, per_category)


def _with_areas(rows: Sequence[Row], images: Mapping[int, Row]) -> list[Row]:
    """An area that is missing is that of the mask, as in COCO; of the box where there is no mask."""
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
        segmentation = tuple(np.array(outline, np.float64) for outline in segmentation)
    return float(pycocotools("mask").area(packed(segmentation, height, width)))


def _for_masks(row: Row) -> Row:
    if row["segmentation"]:
        return row
    left, top, width, height = row["bbox"]
    right, bottom = left + width, top + height
    return {**row, "iscrowd": 1, "segmentation": [[left, top, right, top, right, bottom, left, bottom]]}


def _indexed(content: Mapping[str, Any]) -> Any:
    coco = pycocotools("coco").COCO()
    coco.dataset = {**content, "annotations": [dict(row) for row in content["annotations"]]}  # scoring writes into them
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _detected(truth: Any, results: Sequence[Row]) -> Any:
    if results:
        return truth.loadRes([dict(row) for row in results])  # it writes into the rows
    return _indexed({**truth.dataset, "annotations": []})
