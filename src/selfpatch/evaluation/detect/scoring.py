"""Average precision by pycocotools, of boxes and of masks, over all categories and of each."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from selfpatch.evaluation.detect.masks import pycocotools

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

    Args:
        annotations: the JSON file.
        images: ids of those that count.
    """

    def __init__(self, annotations: Path, images: Sequence[int]) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints how long it takes
            self._coco = pycocotools("coco").COCO(str(annotations))
        self.images = list(images)

    def objects(self) -> dict[int, int]:
        """How many objects each category has, crowds not counted; those that have any, by id."""
        found = self._coco.loadAnns(self._coco.getAnnIds(imgIds=self.images, iscrowd=False))
        ids, counts = np.unique([one["category_id"] for one in found], return_counts=True)
        return {int(category): int(count) for category, count in zip(ids, counts, strict=True)}

    def precision(self, results: Sequence[Mapping[str, Any]], kind: str) -> Precision:
        """Scores the rows of a results file.

        Args:
            results: rows of COCO's results format.
            kind: `bbox` or `segm`.
        """
        with contextlib.redirect_stdout(io.StringIO()):
            scored = pycocotools("cocoeval").COCOeval(self._coco, self._detected(results), kind)
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

    def _detected(self, results: Sequence[Mapping[str, Any]]) -> Any:
        if results:
            return self._coco.loadRes([dict(row) for row in results])  # it writes into the rows
        empty = pycocotools("coco").COCO()
        empty.dataset = {**self._coco.dataset, "annotations": []}
        empty.createIndex()
        return empty
