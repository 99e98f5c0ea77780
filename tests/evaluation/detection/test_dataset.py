"""Splits: labels of categories with gaps, crowds, and missing files."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfpatch.evaluation.detection.dataset import open_split
from tests.helpers.detect_data import (
    broken,
    read_json,
    write_split,
)

pytest.importorskip("pycocotools.coco")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools


def test_categories_with_gaps_are_counted_through_and_found_again(tmp_path: Path) -> None:
    split = open_split(write_split(tmp_path, "train"), "train")
    assert split.category_ids == (3, 7, 90)
    assert split.category_names == ("disk", "triangle", "square")
    content = read_json(tmp_path, "train")
    for image in split.images:
        of_image = [row for row in content["annotations"] if row["image_id"] == image.id]
        assert [split.category_ids[one.label - 1] for one in image.instances] == [r["category_id"] for r in of_image]


def test_crowds_are_not_learned_and_images_without_objects_are_kept_apart(tmp_path: Path) -> None:
    split = open_split(write_split(tmp_path, "train"), "train")
    assert [len(image.instances) for image in split.images] == [4, 3, 3, 0]
    assert [len(image.objects()) for image in split.images] == [3, 3, 3, 0]
    assert len(split.with_objects().images) == 3
    assert len(split.first(2).images) == 2


def test_an_image_of_another_size_than_annotated_is_told(tmp_path: Path) -> None:
    split = open_split(broken(tmp_path, lambda c: c["images"][1].update(width=65)), "train")
    with pytest.raises(ValueError, match="64 x 48 pixels, but its annotations are for 65 x 48"):
        split.images[1].read()


def test_a_missing_split_is_told(tmp_path: Path) -> None:
    write_split(tmp_path, "train")
    with pytest.raises(ValueError, match=r"annotations/instances_val\.json; a COCO data set has"):
        open_split(tmp_path, "val")
    (tmp_path / "annotations" / "instances_val.json").write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        open_split(tmp_path, "val")


def test_a_replaced_image_changes_the_fingerprint_and_another_folder_does_not(tmp_path: Path) -> None:
    first, second = (open_split(write_split(tmp_path / name, "train"), "train") for name in ("a", "b"))
    assert first.fingerprint() == second.fingerprint()
    path = second.images[1].path
    path.write_bytes(path.read_bytes() + b"more")
    assert first.fingerprint() != second.fingerprint()
