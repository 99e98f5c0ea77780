"""Recall of each image."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfpatch.evaluation.detection.dataset import open_split
from selfpatch.evaluation.detection.metrics import RECALL, recall_per_image
from tests.helpers.detect_data import (
    truth_rows,
)

pytest.importorskip("pycocotools.coco")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools


def test_each_image_has_the_share_of_its_objects_that_is_found(data: Path) -> None:
    split = open_split(data, "val")
    boxes, _ = truth_rows(data)
    found = recall_per_image(split, boxes)
    assert found == {name: {RECALL: 1.0} for name in ("000000000000.png", "000000000001.png")}
    wrong_class = {**boxes[0], "category_id": next(c for c in (90, 7, 3) if c != boxes[0]["category_id"])}
    left, top, width, height = boxes[2]["bbox"]
    far = {**boxes[2], "bbox": [left + 0.4 * width, top, width, height]}  # IoU 0.6 / 1.4
    unsure = {**boxes[3], "score": 0.49}
    found = recall_per_image(split, [wrong_class, boxes[1], boxes[1], far, unsure, *boxes[4:]])
    assert found["000000000000.png"] == {RECALL: pytest.approx(1 / 3)}
    assert found["000000000001.png"] == {RECALL: pytest.approx(2 / 3)}
