"""Annotation files as tools other than COCO's write them: what is filled in, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.detection.dataset import open_split
from selfpatch.evaluation.detection.evaluate import evaluate
from selfpatch.evaluation.detection.metrics import GroundTruth, average_precision
from selfpatch.evaluation.result import Output
from tests.helpers.detect_data import (
    QUICK,
    broken,
    change,
    read_json,
    rle,
    tiny_encoder,
    truth_rows,
    write_json,
)

pytest.importorskip("pycocotools.coco")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools


def test_no_crowd_field_means_no_crowds(data: Path) -> None:
    change(data, "val", iscrowd=...)
    assert not any(one.crowd for image in open_split(data, "val").images for one in image.instances)


@pytest.mark.parametrize(
    "fields",
    [
        {"area": ...},
        {"id": ...},
        {"id": 0},
        {"segmentation": []},
        {"segmentation": None},
        {"segmentation": [[1, 2, 30, 40]]},
        {"area": None, "iscrowd": None, "segmentation": []},
    ],
    ids=str,
)
def test_what_is_missing_is_filled_in(data: Path, fields: dict[str, Any]) -> None:
    change(data, "val", **fields)
    split = open_split(data, "val")
    boxes, masks = truth_rows(data)
    with_areas = average_precision(split, boxes, [])[0]
    assert with_areas["box AP"] == pytest.approx(1.0)
    scored = GroundTruth(split.annotations, [image.id for image in split.images]).precision(
        [{**row, "segmentation": rle(row, split)} for row in masks], "segm"
    )
    assert scored.overall["AP"] == pytest.approx(1.0)  # what is found in a box without mask is neither right nor wrong


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"bbox": None},
            r"annotation 1 \('0{12}\.png'\) of .*_val\.json has the bbox null; use a list of values",
        ),
        (
            {"bbox": [1, 2, 3]},
            r"annotation 1 \('0{12}\.png'\) of .*_val\.json has the bbox \[1, 2, 3\]; use 4",
        ),
        ({"bbox": [1, 2, -3, 4]}, r"annotation 1 .* has the bbox \[1.0, 2.0, -3.0, 4.0\]; give"),
        ({"bbox": [1, 2, float("nan"), 4]}, r"annotation 1 .* has the bbox\[2\] nan; use a finite number"),
        ({"area": "large"}, "annotation 1 .* of .* has the area 'large'; use a number"),
        ({"segmentation": [1, 2, 3, 4, 5, 6]}, "annotation 1 .* of .* neither polygons"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "neither polygons"),
        ({"segmentation": {"size": [4, 4], "counts": [16]}}, "has run lengths of size"),
        ({"segmentation": {"size": [48, 64], "counts": [16]}}, "has run lengths of 16 pixels; its image has 3072"),
    ],
)
def test_what_cannot_be_used_is_told_before_training(data: Path, fields: dict[str, Any], message: str) -> None:
    change(data, "val", **fields)

    def started(*_: Any) -> None:
        pytest.fail("the training began")

    with pytest.raises(ValueError, match=message):
        evaluate(tiny_encoder(), data, DetectionConfig.from_settings(QUICK), Output(progress=started))


def test_two_images_of_one_id_are_told(data: Path) -> None:
    content = read_json(data, "val")
    content["images"].append(content["images"][0])
    write_json(data, "val", content)
    with pytest.raises(ValueError, match=r"image id 100 is listed twice in .*instances_val\.json"):
        open_split(data, "val")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"].clear(), "holds no annotation"),
        (lambda c: c.pop("categories"), "has no 'categories'"),
        (lambda c: c["annotations"][0].pop("segmentation"), "has no 'segmentation'"),
        (lambda c: c["images"][0].pop("width"), r"image 100 \('0{12}\.png'\) of .* has no 'width'"),
        (lambda c: c["annotations"][0].update(category_id=5), "category_id 5, which is not listed"),
        (lambda c: c["annotations"][0].update(image_id=5), "image_id 5, which is not listed"),
        (
            lambda c: c["images"][0].update(file_name="gone.png"),
            "1 annotated image cannot be found, e.g. .*gone.png",
        ),
        (lambda c: c.update(annotations=c["annotations"][-1:]), "no object in the images used"),
    ],
)
def test_annotations_that_cannot_be_used_are_told(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_split(broken(tmp_path, change), "train").with_objects()
