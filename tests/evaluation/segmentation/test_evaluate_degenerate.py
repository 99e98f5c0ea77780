"""Degenerate features, labels and predictions, which every method reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.types import Encoder
from selfpatch.evaluation.degenerate import PATCHES_EQUAL, Degenerate, collecting_degenerate
from selfpatch.evaluation.encoders import FunctionEncoder, MeanColour
from selfpatch.evaluation.segmentation.config import SegmentationConfig
from selfpatch.evaluation.segmentation.evaluate import ONE_CLASS_LABELLED, ONE_CLASS_PREDICTED, evaluate
from selfpatch.evaluation.segmentation.kmeans import EMPTY_CLUSTERS, FEW_DIRECTIONS
from selfpatch.evaluation.segmentation.patches import ONE_CLASS_LEARNED
from tests.helpers.block_images import write_blocks
from tests.helpers.labelled_images import tiny_encoder

METHODS: dict[str, dict[str, Any]] = {
    "knn": {"resolution": 32, "k": 3},
    "logistic": {"resolution": 32},
    "kmeans": {"resolution": 32},
    "kmeans --preset overclustering": {"preset": "overclustering", "resolution": 32, "components": 2, "seeds": 1},
    "linear": {"preset": "small", "crop": 16, "steps": 4, "batch_size": 2},
    "finetune": {"preset": "small", "crop": 32, "epochs": 1, "batch_size": 6, "warmup_epochs": 0},
    "fpn": {"preset": "small", "crop": 32, "steps": 1, "batch_size": 2},
}
SETTINGS = {name: {"method": name.split()[0], "limit": 6, **settings} for name, settings in METHODS.items()}


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_blocks(tmp_path_factory.mktemp("blocks"))


def degenerate(encoder: Encoder, data: Path, **settings: Any) -> dict[str, Degenerate]:
    with collecting_degenerate() as collector:
        evaluate(encoder, data, SegmentationConfig.from_settings(settings))
    return {found.what: found for found in collector.gathered()}


def of_equal_direction(images: Tensor) -> Tensor:
    """Return features that differ in length alone."""
    return torch.tensor([1.0, -2.0, 0.5]).view(3, 1, 1) * F.avg_pool2d(images, 8).abs().mean(1, keepdim=True)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("knn", {PATCHES_EQUAL}),
        ("logistic", {PATCHES_EQUAL}),
        ("kmeans", {PATCHES_EQUAL, EMPTY_CLUSTERS}),
        ("kmeans --preset overclustering", {PATCHES_EQUAL, EMPTY_CLUSTERS, FEW_DIRECTIONS}),
        ("linear", {PATCHES_EQUAL}),
    ],
)
@pytest.mark.parametrize(
    "function", [lambda x: torch.ones_like(F.avg_pool2d(x, 8)), of_equal_direction], ids=["constant", "direction"]
)
def test_constant_features_are_reported(
    blocks: Path, method: str, expected: set[str], function: Callable[[Tensor], Tensor]
) -> None:
    settings = SETTINGS[method]
    if settings.get("preset") == "overclustering":
        settings = {**settings, "num_clusters": 4}
    found = degenerate(FunctionEncoder(function, 8), blocks, **settings)
    constant = function is not of_equal_direction
    if constant:
        assert found.keys() == expected | {ONE_CLASS_PREDICTED}
    else:
        assert found.keys() >= expected & {PATCHES_EQUAL}
    if PATCHES_EQUAL in expected:
        images = 3 if "kmeans" in method else 6
        assert (found[PATCHES_EQUAL].count, found[PATCHES_EQUAL].total) == (images, images)


@pytest.mark.parametrize("method", ["finetune", "fpn"])
def test_a_dead_network_that_is_trained_is_reported(blocks: Path, method: str) -> None:
    network = tiny_encoder("vit")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    found = degenerate(network, blocks, **SETTINGS[method])
    assert (found[PATCHES_EQUAL].count, found[PATCHES_EQUAL].total) == (6, 6)
    assert (ONE_CLASS_PREDICTED in found) == (method == "finetune")  # a decoder sees the borders of an image


def test_crops_smaller_than_a_patch_are_checked_too(blocks: Path) -> None:
    """A decoder pads them; the check of the features follows the training, and must not fail it."""
    network = tiny_encoder("vit")
    found = degenerate(network, blocks, **{**SETTINGS["fpn"], "crop": network.patch_size // 2})
    assert PATCHES_EQUAL not in found  # a single patch has nothing to compare


@pytest.mark.parametrize("method", ["knn", "logistic", "kmeans", "linear"])
def test_features_that_tell_the_classes_are_not_reported(blocks: Path, method: str) -> None:
    settings = {**SETTINGS[method], **({"steps": 40, "batch_size": 4} if method == "linear" else {})}
    assert not degenerate(MeanColour(4), blocks, **settings)


def test_labels_of_one_class_are_reported(tmp_path: Path) -> None:
    data = write_blocks(tmp_path / "blocks")
    for split in ("train", "val"):
        for path in (data / "labels" / split).iterdir():
            Image.fromarray(np.ones((32, 40), np.uint8)).save(path)
    found = degenerate(MeanColour(4), data, **SETTINGS["knn"])
    assert found.keys() == {ONE_CLASS_LABELLED, ONE_CLASS_LEARNED}
