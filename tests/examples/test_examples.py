"""The examples run, are short, and do what they say."""

from __future__ import annotations

import ast
import importlib.util
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import selfpatch
from selfpatch.evaluation.object_discovery.config import ObjectDiscoveryConfig
from selfpatch.evaluation.object_discovery.dataset import open_images
from selfpatch.evaluation.segmentation.dataset import open_dataset
from tests.helpers.command_line import write_photos

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loop_lines(name: str) -> int:
    """Number of lines of the training loop's body, from the patches or relations to the update of the loss."""
    lines = [line for line in (EXAMPLES / f"{name}.py").read_text().splitlines() if line.strip()]
    start = next(i for i, line in enumerate(lines) if "student(crops)" in line or "side(crops)" in line)
    end = next(i for i, line in enumerate(lines) if "criterion.update(" in line)
    return end + 1 - start


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_under_40_lines_and_begins_by_saying_what_it_shows(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 40
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("name", ["selfpatch_in_your_loop", "sere_in_your_loop"])
def test_a_loop_of_ones_own_is_at_most_12_lines_and_trains(name: str) -> None:
    assert loop_lines(name) <= 12
    torch.manual_seed(0)
    losses = example(name).main(steps=2, batch_size=2)
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)


def test_an_own_method_trains_with_selfpatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from selfpatch.methods.registry import METHODS

    monkeypatch.setitem(METHODS, "contrast", None)  # so that the row goes with the test
    METHODS["contrast"] = example("own_method").Contrast
    run = selfpatch.pretrain(
        data=str(write_photos(tmp_path / "photos", 12)),
        out=str(tmp_path / "run"),
        method="contrast",
        objective="selfpatch",
        contrast={"temp": 0.1},
        model="vit_tiny",
        epochs=1,
        batch_size=4,
        device="cpu",
        backbone={"embed_dim": 24, "depth": 1, "num_heads": 2},
        crops={"global_size": 32, "num_local": 0},
        selfpatch={"num_prototypes": 32, "hidden_dim": 16, "bottleneck_dim": 8},
        watch={"evaluate_every": 0, "picture_images": 0},
    )
    assert yaml.safe_load((run / "config.yaml").read_text())["contrast"] == {"temp": 0.1}


def test_features_of_a_folder(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 12)
    features = example("features_of_a_folder").main(str(photos), "baseline:raw-patch:16", side=32)
    assert features["patches"].shape == (12, 2, 2, 3 * 16 * 16)
    torch.testing.assert_close(features["images"], features["patches"].mean((1, 2)))


def test_davis_becomes_classes_and_boxes(tmp_path: Path) -> None:
    for number, video in enumerate(("swan", "dog")):
        photos, masks = (tmp_path / "DAVIS" / kind / "480p" / video for kind in ("JPEGImages", "Annotations"))
        photos.mkdir(parents=True), masks.mkdir(parents=True)
        for frame in range(21):
            mask = np.zeros((20, 30), np.uint8)
            mask[5:15, 2 + number : 8] = 1
            Image.fromarray(mask).save(masks / f"{frame:05d}.png")
            Image.fromarray(255 * mask).convert("RGB").save(photos / f"{frame:05d}.jpg")
    example("davis_as_classes").main(str(tmp_path / "DAVIS"), str(tmp_path / "out"))
    train, val = (open_dataset(tmp_path / "out", split, "folder") for split in ("train", "val"))
    assert train.classes == ("background", "dog", "swan")
    assert (len(train.images), len(val.images)) == (4, 2)
    assert np.unique(val.read(0)[1]).tolist() == [0, 1]
    found = open_images(tmp_path / "out" / "images", ObjectDiscoveryConfig(split="val"))
    assert [image.boxes for image in found] == [((3.0, 5.0, 8.0, 15.0),), ((2.0, 5.0, 8.0, 15.0),)]
