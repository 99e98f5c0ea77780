"""Annotation files of COCO: what is wrong is told before anything is done with it, by file, image and annotation."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from selfpatch.evaluation.coco import read_boxes, read_instances, unpacked

CONTENT: dict[str, Any] = {
    "info": {"year": 2017},
    "images": [
        {"id": 7, "file_name": "a.png", "width": 10, "height": 6, "license": 1},
        {"id": 8, "file_name": "b.png", "width": 10, "height": 6},
    ],
    "categories": [{"id": 3, "name": "disk"}, {"id": 90, "name": "square"}],
    "annotations": [
        {"id": 21, "image_id": 7, "category_id": 3, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0,
         "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]},
        {"id": 22, "image_id": 8, "category_id": 90, "bbox": [0, 0, 10, 6.0], "iscrowd": 1,
         "segmentation": {"size": [6, 10], "counts": [6, 54]}},
    ],
}  # fmt: skip
Change = Callable[[dict[str, Any]], object]


def first(kind: str, **fields: Any) -> Change:
    """Set fields of the first entry of a list; `...` takes one out."""

    def change(content: dict[str, Any]) -> None:
        content[kind][0] |= fields
        content[kind][0] = {key: value for key, value in content[kind][0].items() if value is not ...}

    return change


def written(folder: Path, change: Change = lambda content: None) -> Path:
    content = copy.deepcopy(CONTENT)
    replaced = change(content)
    file = folder / "instances_x.json"
    file.write_text(json.dumps(content if not isinstance(replaced, Replaced) else replaced.content))
    return file


class Replaced:
    def __init__(self, content: Any) -> None:
        self.content = content


def test_a_sound_file_is_read_in_a_uniform_format(tmp_path: Path) -> None:
    content = read_instances(written(tmp_path))
    assert content["images"] == [{key: image[key] for key in ("id", "file_name", "width", "height")}
                                 for image in CONTENT["images"]]  # fmt: skip
    assert content["annotations"] == [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0,
         "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]},
        {"id": 2, "image_id": 8, "category_id": 90, "bbox": [0, 0, 10, 6], "area": None, "iscrowd": 1,
         "segmentation": {"size": [6, 10], "counts": [6, 54]}},
    ]  # fmt: skip


@pytest.mark.parametrize(("given", "read"), [(True, 1), (False, 0), (1, 1), (0, 0), (None, 0), (..., 0)])
def test_crowds(tmp_path: Path, given: Any, read: int) -> None:
    content = read_instances(written(tmp_path, first("annotations", iscrowd=given)))
    assert content["annotations"][0]["iscrowd"] == read


def test_polygons_that_enclose_nothing_are_left_out(tmp_path: Path) -> None:
    polygons = [[1, 1, 5, 1, 5, 5], [], [1, 2], [1, 1, 4, 4]]  # pycocotools would take the last one for a box
    content = read_instances(written(tmp_path, first("annotations", segmentation=polygons)))
    assert content["annotations"][0]["segmentation"] == polygons[:1]


NEITHER = "has a segmentation that is neither polygons [[x, y, x, y, ...], ...] nor run lengths"
ROW, IMAGE, CATEGORY = "annotation 21 ('a.png') of FILE ", "image 7 ('a.png') of FILE ", "category 3 of FILE "
WRONG: list[tuple[Change, str]] = [
    (lambda c: Replaced([]), "FILE holds []; use a mapping"),
    (lambda c: Replaced({}), "FILE has no 'images'"),
    (lambda c: c.pop("categories"), "FILE has no 'categories'"),
    (lambda c: c.update(annotations={}), "FILE has the annotations {}; use a list"),
    (lambda c: c.update(images=None), "FILE has the images null; use a list"),
    (lambda c: c["annotations"].append(5), "annotation number 3 of FILE holds 5; use a mapping"),
    (first("images", width=None), IMAGE + "has the width null; use a whole number"),
    (first("images", width="640"), IMAGE + "has the width '640'; use a whole number"),
    (first("images", width=True), IMAGE + "has the width true; use a whole number"),
    (first("images", height=math.nan), IMAGE + "has the height nan; use a whole number"),
    (first("images", height=0), IMAGE + "has the height 0; use 1 or more"),
    (first("images", height=-6), IMAGE + "has the height -6; use 1 or more"),
    (first("images", height=10**9), IMAGE + "has the height 1000000000; use 65535 or less"),
    (first("images", height=65535, width=65535), IMAGE + "has over 2147483647 pixels"),
    (first("images", file_name=139), "image 7 (139) of FILE has the file_name 139; use text"),
    (first("images", file_name=None), "image 7 (null) of FILE has the file_name null; use text"),
    (first("images", file_name="b.png"), "file_name 'b.png' is listed twice in FILE"),
    (first("images", id="7"), "image '7' ('a.png') of FILE has the id '7'; use a whole number"),
    (first("images", id=7.5), "image 7.5 ('a.png') of FILE has the id 7.5; use a whole number"),
    (first("images", id=...), "image number 1 ('a.png') of FILE has no 'id'"),
    (first("images", id=8), "image id 8 is listed twice in FILE"),
    (first("categories", id=90), "category id 90 is listed twice in FILE"),
    (first("categories", id="3"), "category '3' of FILE has the id '3'; use a whole number"),
    (first("categories", name=None), CATEGORY + "has the name null; use text"),
    (first("annotations", id=22), "annotation id 22 is listed twice in FILE"),
    (first("annotations", id=10**30), "has the id 1000000000000000000000000000000; use"),
    (first("annotations", image_id="7"), "annotation 21 of FILE has the image_id '7'; use a whole number"),
    (first("annotations", image_id=9), "annotation 21 of FILE is for image_id 9, which is not listed"),
    (first("annotations", category_id=4), ROW + "is for category_id 4, which is not listed"),
    (first("annotations", category_id=...), ROW + "has no 'category_id'"),
    (first("annotations", iscrowd="0"), ROW + "has the iscrowd '0'; use 0 or 1"),
    (first("annotations", iscrowd=2), ROW + "has the iscrowd 2; use 0 or 1"),
    (first("annotations", iscrowd=[]), ROW + "has the iscrowd []; use 0 or 1"),
    (first("annotations", bbox=...), ROW + "has no 'bbox'"),
    (first("annotations", bbox=[1, 1, -4, 4]), ROW + "has the bbox [1.0, 1.0, -4.0, 4.0]; give"),
    (first("annotations", bbox=[1, 1, math.inf, 4]), ROW + "has the bbox[2] inf; use a finite number"),
    (first("annotations", bbox=[1, math.nan, 4, 4]), ROW + "has the bbox[1] nan; use a finite number"),
    (first("annotations", bbox=[1e300, 1, 4, 4]), ROW + "has the bbox[0] 1e+300; use"),
    (first("annotations", bbox=[1, "1", 4, 4]), ROW + "has the bbox[1] '1'; use a number"),
    (first("annotations", bbox=[1, 1, 4, 4, 5]), ROW + "has the bbox [1, 1, 4, 4, 5]; use 4 values"),
    (first("annotations", bbox="1 1 4 4"), ROW + "has the bbox '1 1 4 4'; use a list"),
    (first("annotations", area=-1), ROW + "has the area -1; use 0 or more"),
    (first("annotations", segmentation=...), ROW + "has no 'segmentation'"),
    (first("annotations", segmentation="x"), ROW + NEITHER),
    (first("annotations", segmentation=[1, 2, 3, 4, 5, 6]), ROW + NEITHER),
    (first("annotations", segmentation=[[1, 1, 5, 1, 5, 5, 1]]), ROW + NEITHER),
    (first("annotations", segmentation=[[1, 1, 5, True, 5, 5]]), ROW + NEITHER),
    (first("annotations", segmentation=[[1, 1, 5, math.nan, 5, 5]]), ROW + NEITHER),
    (first("annotations", segmentation=[[1, 1, 5, 10**400, 5, 5]]), ROW + NEITHER),
    (first("annotations", segmentation=[[1, 1, 1e9, 1, 5, 5]]), ROW + "has a polygon far outside of"),
    (first("annotations", segmentation=[[0, 0, 9, 5] * 200_000]), ROW + "has a polygon far outside of its image"),
    (first("annotations", segmentation={"size": [10, 6], "counts": [60]}), ROW + "has run lengths of size [10, 6]"),
    (first("annotations", segmentation={"counts": [60]}), ROW + "has run lengths of size null; give"),
    (first("annotations", segmentation={"size": [6, 10], "counts": [59]}), ROW + "has run lengths of 59 pixels; its"),
    (first("annotations", segmentation={"size": [6, 10], "counts": [70, -10]}), ROW + "has run lengths of 60 pixels"),
    (first("annotations", segmentation={"size": [6, 10], "counts": [60.0]}), ROW + "has the counts [60.0]"),
    (first("annotations", segmentation={"size": [6, 10], "counts": None}), ROW + "has the counts null of run lengths"),
    (first("annotations", segmentation={"size": [6, 10], "counts": "zz é"}), ROW + "has the counts 'zz é', which"),
    (first("annotations", segmentation={"size": [6, 10], "counts": "o" * 50}), ROW + "has the counts 'ooooo"),
    (first("annotations", segmentation={"size": [6, 10], "counts": ""}), ROW + "has run lengths of 0 pixels"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_a_fault_is_told_by_file_image_and_annotation(tmp_path: Path, change: Change, message: str) -> None:
    file = written(tmp_path, change)
    with pytest.raises(ValueError, match=r"\S") as told:
        read_instances(file)
    assert message in str(told.value).replace(str(file), "FILE")
    assert len(str(told.value)) < 300 + len(str(file))


def test_files_of_boxes_need_neither_categories_nor_sizes(tmp_path: Path) -> None:
    content = {
        "images": [{"id": 7, "file_name": "a.png"}], "annotations": [{"image_id": 7, "bbox": [1, 1, 4, 4]}],
    }  # fmt: skip
    file = written(tmp_path, lambda c: Replaced(content))
    assert read_boxes(file)["annotations"] == [{"image_id": 7, "bbox": [1, 1, 4, 4], "iscrowd": 0}]
    with pytest.raises(ValueError, match=r"image 7 \('a.png'\) of .* has no 'width'"):
        read_instances(written(tmp_path, lambda c: [image.pop("width") for image in c["images"]]))


def test_packed_run_lengths_are_those_of_pycocotools() -> None:
    mask = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    for height, width in [(1, 1), (3, 40), (200, 37), (700, 900)]:
        for density in (0.0, 0.01, 0.5, 1.0):
            pixels = rng.random((height, width)) < density
            lengths = unpacked(mask.encode(np.asfortranarray(pixels, np.uint8))["counts"].decode())
            values = np.arange(len(lengths)) % 2
            assert (np.repeat(values, lengths) == pixels.ravel(order="F")).all()
