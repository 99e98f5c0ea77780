"""Average precision is that of pycocotools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfpatch.evaluation.detection.dataset import AnnotatedImage, open_split
from selfpatch.evaluation.detection.metrics import average_precision
from selfpatch.evaluation.detection.predictions import Detections, detect_all, save
from tests.helpers.detect_data import (
    annotation,
    change,
    compare_with_pycocotools,
    noise,
    oracle,
    outline,
    read_json,
    rle,
    truth_rows,
    write_json,
    write_split,
)

pytest.importorskip("pycocotools.coco")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools


@pytest.mark.parametrize(("detector", "low", "high"), [(oracle, 1.0, 1.0), (noise, 0.0, 0.05)])
def test_the_truth_scores_1_and_noise_nearly_0(coco_data: Path, detector: Any, low: float, high: float) -> None:
    split = open_split(coco_data, "val")
    metrics, rows = average_precision(split, *detect_all(detector, split))
    assert [row["category"] for row in rows] == ["disk", "triangle", "square"]
    assert [row["objects"] for row in rows] == [3, 3, 3]  # the crowd is none
    for value in (metrics["box AP"], metrics["mask AP"], *(row[k] for row in rows for k in ("box AP", "mask AP"))):
        assert low - 1e-9 <= float(value) <= high + 1e-9


def test_the_truth_scores_1_on_real_annotations(data_dir: Path) -> None:
    split = open_split(data_dir / "coco_mini", "val2017")
    metrics, rows = average_precision(split, *detect_all(oracle, split))
    assert metrics["box AP"] == pytest.approx(1.0)
    assert metrics["mask AP"] == pytest.approx(1.0)
    assert len(rows) == 68


def test_a_half_found_set_scores_as_computed_by_hand(tmp_path: Path) -> None:
    """One of two squares found, exactly: precision 1 up to recall 1/2, that is at 51 of 101 points."""
    write_split(tmp_path, "val", images=1)
    content = read_json(tmp_path, "val")
    boxes = [(5.0, 5.0, 25.0, 25.0), (30.0, 10.0, 60.0, 40.0)]
    content["annotations"] = [annotation(n, 100, 90, outline(90, box)) for n, box in enumerate(boxes, start=1)]
    write_json(tmp_path, "val", content)
    split = open_split(tmp_path, "val")

    def half(image: AnnotatedImage) -> Detections:
        found = oracle(image)
        return Detections(found.boxes[:1], found.labels[:1], found.scores[:1], found.masks[:1])

    metrics, _ = average_precision(split, *detect_all(half, split))
    assert metrics["box AP"] == pytest.approx(51 / 101)
    assert metrics["mask AP50"] == pytest.approx(51 / 101)


def test_nothing_found_scores_0(coco_data: Path) -> None:
    metrics, rows = average_precision(open_split(coco_data, "val"), [], [])
    assert metrics["box AP"] == metrics["mask AP"] == 0
    assert all(row["box AP"] == 0 for row in rows)


def test_the_numbers_are_those_of_pycocotools_by_itself(coco_data: Path, tmp_path: Path) -> None:
    """On boxes and masks that are a little off, some missing and some twice, so that no number is 0 or 1."""

    def blurred(image: AnnotatedImage) -> Detections:
        rng = np.random.default_rng(image.id)
        found, wrong = oracle(image), noise(image)
        boxes = torch.cat([found.boxes[1:] + torch.from_numpy(rng.normal(0, 0.8, (1, 4))).float(), wrong.boxes])
        labels = torch.cat([found.labels[1:], wrong.labels])
        return Detections(boxes, labels, torch.from_numpy(rng.random(len(boxes))), [*found.masks[1:], *wrong.masks])

    split = open_split(coco_data, "val")
    boxes, masks = detect_all(blurred, split)
    save(tmp_path, boxes, masks)
    metrics, _ = average_precision(split, boxes, masks)
    assert 0 < metrics["box AP"] < metrics["box AP50"] < 1
    assert 0 < metrics["mask AP"] < 1
    compare_with_pycocotools(metrics, coco_data, tmp_path)


def test_an_object_with_a_box_only_need_not_be_found_as_a_mask(data: Path) -> None:
    change(data, "val", segmentation=[])
    split = open_split(data, "val")
    boxes, masks = truth_rows(data)
    others = [{**row, "segmentation": rle(row, split)} for row in masks[1:]]
    metrics, _ = average_precision(split, boxes, others)
    assert metrics["mask AP"] == pytest.approx(1.0)
    assert metrics["box AP"] == pytest.approx(1.0)


def test_a_set_of_boxes_only_has_no_precision_of_masks(data: Path) -> None:
    content = read_json(data, "val")
    for row in content["annotations"]:
        row["segmentation"] = []
    write_json(data, "val", content)
    metrics, rows = average_precision(open_split(data, "val"), truth_rows(data)[0], [])
    assert metrics["box AP"] == pytest.approx(1.0)
    assert "mask AP" not in metrics
    assert all(np.isnan(row["mask AP"]) for row in rows)


def test_a_missing_area_is_that_of_the_mask(data: Path) -> None:
    content = read_json(data, "val")
    for row in content["annotations"]:
        del row["area"]
        row["segmentation"], row["bbox"] = [[0, 0, 33, 0, 33, 33, 0, 33]], [0, 0, 33, 33]
    write_json(data, "val", content)
    split = open_split(data, "val")
    scored = average_precision(split, [], [])[0]
    assert "box AP medium" in scored  # 33 x 33 is more than 32 x 32
    assert "box AP small" not in scored
