"""Annotations as tools other than COCO's write them: what is filled in, and what is told before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfpatch.evaluation.detection.augmentation import place_objects, whole
from selfpatch.evaluation.detection.config import PRESETS
from selfpatch.evaluation.detection.dataset import open_split
from selfpatch.evaluation.detection.evaluate import average_precision, evaluate
from selfpatch.evaluation.detection.metrics import GroundTruth
from selfpatch.evaluation.detection.network import _on_masks
from selfpatch.evaluation.detection.predictions import BOXES, MASKS
from selfpatch.evaluation.detection.recall import RECALL, recall_per_image
from selfpatch.evaluation.detection.visualize import draw_found
from selfpatch.evaluation.presets import resolve_preset
from selfpatch.evaluation.probe_training import fit
from tests.helpers.detect_data import outline, read_json, tiny_encoder, write_json, write_split

pytest.importorskip("pycocotools.coco")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools

QUICK: dict[str, Any] = {
    "preset": "small", "train_split": "train", "test_split": "val", "width": 8, "proposals": 30, "rois": 16,
    "short_sides": (32,), "long_side": 64, "batch_size": 2, "epochs": 1.0, "anchor_scale": 4.0, "lr": 1e-4,
}  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_split(tmp_path / "coco", "train", images=3)
    return write_split(tmp_path / "coco", "val", images=3, seed=1)


def change(data: Path, split: str, **fields: Any) -> None:
    """Sets fields of the first annotation; ...: takes them out of all."""
    content = read_json(data, split)
    for name, value in fields.items():
        if value is ...:
            for annotation in content["annotations"]:
                annotation.pop(name)
        else:
            content["annotations"][0][name] = value
    write_json(data, split, content)


def truth_rows(data: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What a detector that finds each object would write."""
    boxes, masks = [], []
    for row in read_json(data, "val")["annotations"]:
        if not row.get("iscrowd"):
            found = {"image_id": row["image_id"], "category_id": row["category_id"], "score": 1.0}
            boxes.append({**found, "bbox": row["bbox"]})
            left, top, width, height = row["bbox"]
            points = outline(row["category_id"], (left, top, left + width, top + height))
            masks.append({**found, "segmentation": [points]})
    return boxes, masks


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


def rle(row: dict[str, Any], split: Any) -> dict[str, Any]:
    from selfpatch.evaluation.detection.masks import packed

    image = next(one for one in split.images if one.id == row["image_id"])
    (points,) = row["segmentation"]
    return packed((np.array(points).reshape(-1, 2),), image.height, image.width)


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


def test_bf16_is_a_precision(data: Path) -> None:
    assert evaluate(tiny_encoder(), data, precision="bf16", **QUICK).settings["precision"] == "bf16"
    with pytest.raises(ValueError, match="precision is 'bfloat16'; use one of: float32, bf16"):
        evaluate(tiny_encoder(), data, precision="bfloat16", **QUICK)  # type: ignore[arg-type]


def test_no_crowd_field_means_no_crowds(data: Path) -> None:
    change(data, "val", iscrowd=...)
    assert not any(one.crowd for image in open_split(data, "val").images for one in image.instances)


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


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bbox": None}, "annotation 1 of .*instances_val.json has the bbox None; give"),
        ({"bbox": [1, 2, 3]}, r"annotation 1 of .*instances_val.json has the bbox \[1, 2, 3\]; give"),
        ({"bbox": [1, 2, -3, 4]}, "has the bbox"),
        ({"bbox": [1, 2, float("nan"), 4]}, "has the bbox"),
        ({"area": "large"}, "annotation 1 of .* has the area 'large'"),
        ({"segmentation": [1, 2, 3, 4, 5, 6]}, "annotation 1 of .* neither outlines"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "neither outlines"),
        ({"segmentation": {"size": [4, 4], "counts": [16]}}, "has run lengths of size"),
        ({"segmentation": {"size": [48, 64], "counts": [16]}}, "has run lengths of 16 pixels; its image has 3072"),
    ],
)
def test_what_cannot_be_used_is_told_before_training(data: Path, fields: dict[str, Any], message: str) -> None:
    change(data, "val", **fields)

    def started(*_: Any) -> None:
        pytest.fail("the training began")

    with pytest.raises(ValueError, match=message):
        evaluate(tiny_encoder(), data, progress=started, **QUICK)


def test_two_images_of_one_id_are_told(data: Path) -> None:
    content = read_json(data, "val")
    content["images"].append(content["images"][0])
    write_json(data, "val", content)
    with pytest.raises(ValueError, match=r"two images of .* have the id 100"):
        open_split(data, "val")


def test_an_object_with_a_box_only_is_learned_without_mask(data: Path) -> None:
    change(data, "train", segmentation=[])
    image = open_split(data, "train").images[0]
    target = place_objects(image.objects(), 64, 48, whole(64, 48, 48, 64))
    assert len(target["boxes"]) == 3
    assert [bool(mask.any()) for mask in target["masks"]] == [False, True, True]
    matched = torch.tensor([0, 1, 0, 2, 1])
    assert _on_masks(target["masks"], torch.tensor([0, 1, 3]), matched).tolist() == [1, 3]
    assert 0 <= evaluate(tiny_encoder(), data, **QUICK).metrics["box AP"] <= 1


def test_predictions_are_kept_when_scoring_fails(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("scoring")

    monkeypatch.setattr("selfpatch.evaluation.detection.evaluate.average_precision", fails)
    with pytest.raises(RuntimeError, match="scoring"):
        evaluate(tiny_encoder(), data, out=tmp_path / "out", **QUICK)
    assert (tmp_path / "out" / BOXES).is_file()
    assert (tmp_path / "out" / MASKS).is_file()


def test_a_finished_training_is_scored_on_another_split_and_changed_labels_are_refused(
    data: Path, tmp_path: Path
) -> None:
    evaluate(tiny_encoder(), data, out=tmp_path / "out", **QUICK)
    moved = data.rename(tmp_path / "moved")
    told: list[str] = []
    spelled_out = {**QUICK, "test_split": "train"}
    result = evaluate(tiny_encoder(), moved, out=tmp_path / "out", progress=lambda w, *_: told.append(w), **spelled_out)
    assert set(told) == {"detecting"}
    assert result.settings["test_split"] == "train"
    change(moved, "train", category_id=7)
    with pytest.raises(ValueError, match=r"a training with other settings .training data"):
        evaluate(tiny_encoder(), moved, out=tmp_path / "out", **QUICK)


def test_the_identity_holds_what_training_depends_on_only(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[Any] = []

    def spied(*arguments: Any, settings: Any, **others: Any) -> Any:
        handed.append(settings)
        return fit(*arguments, settings=settings, **others)

    monkeypatch.setattr("selfpatch.evaluation.detection.training.fit", spied)
    for settings in (QUICK, {**QUICK, "test_split": "train"}, {**QUICK, "limit": 3}, {**QUICK, "seed": 1}):
        evaluate(tiny_encoder(), data, **settings)
    assert handed[0] == handed[1] == handed[2] != handed[3]
    assert not {"preset", "data", "train_split", "test_split", "test_images"} & handed[0].keys()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("drop_path", 1.0), ("drop_path", -0.1), ("warmup_steps", -1), ("weight_decay", -0.1), ("clip", -1.0),
        ("lr", float("nan")), ("epochs", float("inf")), ("pyramid", "none"), ("heads", "x"), ("augmentation", "x"),
    ],
)  # fmt: skip
def test_settings_that_make_no_training_are_told(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is .*; use"):
        resolve_preset(PRESETS, "small", **{name: value})


@pytest.mark.parametrize("name", ["seed", "workers", "max_pictures"])
def test_numbers_below_0_are_told(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{name} is -1; use 0 or more"):
        evaluate(tiny_encoder(), tmp_path / "nowhere", **QUICK, **{name: -1})


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


def test_pictures_are_listed_and_written(data: Path, tmp_path: Path) -> None:
    result = evaluate(tiny_encoder(), data, out=tmp_path / "out", max_pictures=2, **QUICK)
    assert result.pictures == ["pictures/000000000000.jpg", "pictures/000000000002.jpg"]
    assert all((tmp_path / "out" / path).is_file() for path in result.pictures)
    assert set(result.per_image) == {"000000000000.png", "000000000001.png"}
    assert not evaluate(tiny_encoder(), data, **QUICK).pictures


def test_a_picture_shows_box_and_mask_of_what_is_sure(data: Path) -> None:
    split = open_split(data, "val")
    image = split.images[0].read()
    boxes, masks = truth_rows(data)
    drawn = [{**row, "segmentation": rle(row, split)} for row in masks[:1]]
    shown = np.array(draw_found(image, split, boxes[:1], drawn)).astype(int)
    changed = np.abs(shown - np.array(image)).max(axis=2) > 0
    left, top, width, height = boxes[0]["bbox"]
    assert changed[round(top + height / 2), round(left + width / 2)]
    unsure = draw_found(image, split, [{**boxes[0], "score": 0.1}], drawn)
    assert np.array_equal(np.array(unsure), np.array(image))
