"""Mask R-CNN and its cascade learn eight images by heart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.detection.evaluate import evaluate
from tests.helpers.detect_data import tiny_encoder

SMALL: dict[str, Any] = {
    "preset": "small", "train_split": "train2017", "test_split": "train2017", "short_sides": (128,), "long_side": 214,
    "width": 32, "rois": 64, "proposals": 100, "anchor_scale": 3.0, "lr": 2e-3, "epochs": 55.0,
}  # fmt: skip
CASCADE: dict[str, Any] = {"detector": "cascade", "box_loss": "giou", "rpn_loss": "smooth-l1", "epochs": 44.0}
"""With the linear heads of Mask R-CNN: convolutional ones need several times as many steps."""


def eight_images(source: Path, folder: Path) -> Path:
    """Return a data set of the eight images of coco_mini whose smallest object takes the largest share of them."""
    content = json.loads((source / "annotations" / "instances_train2017.json").read_text())
    sizes = {image["id"]: image["width"] * image["height"] for image in content["images"]}
    smallest: dict[int, float] = {}
    for row in content["annotations"]:
        share = 0.0 if row["iscrowd"] else row["area"] / sizes[row["image_id"]]
        smallest[row["image_id"]] = min(share, smallest.get(row["image_id"], 1.0))
    chosen = sorted(smallest, key=lambda number: -smallest[number])[:8]
    content["images"] = [image for image in content["images"] if image["id"] in chosen]
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in chosen]
    (folder / "annotations").mkdir()
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    (folder / "train2017").symlink_to(source / "train2017")
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools
@pytest.mark.parametrize("settings", [{}, CASCADE], ids=["mask-rcnn", "cascade"])
def test_eight_images_are_learned_by_heart(settings: dict[str, Any], data_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("pycocotools.coco")
    encoder = tiny_encoder(embed_dim=64, depth=2, num_heads=2, grid=14)
    config = DetectionConfig.from_settings({**SMALL, **settings})
    metrics = evaluate(encoder, eight_images(data_dir / "coco_mini", tmp_path), config).metrics
    assert metrics["box AP50"] > 0.5
