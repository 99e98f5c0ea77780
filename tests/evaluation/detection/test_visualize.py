"""Pictures of detections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import ImageDraw

from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.detection.dataset import open_split
from selfpatch.evaluation.detection.evaluate import evaluate
from selfpatch.evaluation.detection.visualize import draw_detections, draw_truth, save_pictures
from selfpatch.evaluation.result import Output
from tests.helpers.detect_data import (
    QUICK,
    rle,
    tiny_encoder,
    truth_rows,
    write_split,
)

pytest.importorskip("pycocotools.coco")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools


def test_pictures_are_listed_and_written(data: Path, tmp_path: Path) -> None:
    result = evaluate(
        tiny_encoder(), data, DetectionConfig.from_settings({**QUICK, "max_pictures": 2}), Output(tmp_path / "out")
    )
    assert result.pictures == ["pictures/00000-000000000000.jpg", "pictures/00002-000000000002.jpg"]
    assert all((tmp_path / "out" / path).is_file() for path in result.pictures)
    assert set(result.per_image) == {"000000000000.png", "000000000001.png"}
    assert not evaluate(tiny_encoder(), data, DetectionConfig.from_settings(QUICK)).pictures


def test_names_that_differ_by_a_folder_or_an_ending_keep_their_pictures(tmp_path: Path) -> None:
    write_split(tmp_path, "val", images=3)
    (tmp_path / "val" / "a").mkdir()
    file = tmp_path / "annotations" / "instances_val.json"
    text = file.read_text()
    for number, name in enumerate(("a/b.png", "a_b.png", "a_b.bmp")):
        text = text.replace(f"{number:012d}.png", name)
        (tmp_path / "val" / f"{number:012d}.png").rename(tmp_path / "val" / name)
    file.write_text(text)
    split = open_split(tmp_path, "val")
    pictures = save_pictures(tmp_path, split, [], [], 3)
    assert len({(tmp_path / path).read_bytes() for path in pictures}) == 3


def test_a_picture_shows_box_and_mask_of_what_is_sure(data: Path) -> None:
    split = open_split(data, "val")
    image = split.images[0].read()
    boxes, masks = truth_rows(data)
    drawn = [{**row, "segmentation": rle(row, split)} for row in masks[:1]]
    shown = np.array(draw_detections(image, split, boxes[:1], drawn)).astype(int)
    changed = np.abs(shown - np.array(image)).max(axis=2) > 0
    left, top, width, height = boxes[0]["bbox"]
    assert changed[round(top + height / 2), round(left + width / 2)]
    unsure = draw_detections(image, split, [{**boxes[0], "score": 0.1}], drawn)
    assert np.array_equal(np.array(unsure), np.array(image))


def test_annotations_are_drawn_as_detections_are(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda *_, **__: None)
    split = open_split(data, "val")
    image, instances = split.images[0].read(), split.images[0].objects()
    boxes, masks = ([row for row in rows if row["image_id"] == split.images[0].id] for rows in truth_rows(data))
    found = draw_detections(image, split, boxes, [{**row, "segmentation": rle(row, split)} for row in masks])
    annotated = draw_truth(image, split, instances)
    assert np.array_equal(np.array(annotated), np.array(found))
    assert not np.array_equal(np.array(annotated), np.array(image))
