"""Sets of one class, classes without training images and networks that tell nothing apart are said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selfpatch.api.evaluate import measure
from selfpatch.core.types import Encoder
from selfpatch.evaluation.classification.dataset import open_splits
from selfpatch.evaluation.classification.degenerate import ONE_CLASS, SCORES_EQUAL, UNSEEN_CLASS, check_classes
from selfpatch.evaluation.degenerate import IMAGES_EQUAL, Degenerate, collecting_degenerate
from selfpatch.evaluation.encoders import MeanColour
from tests.helpers.labelled_images import coloured_folder, tiny_encoder

SETTINGS: dict[str, dict[str, Any]] = {
    "knn": {"ks": (1,)},
    "linear": {"epochs": 1, "batch_size": 6, "workers": 0},
    "finetune": {"epochs": 1, "batch_size": 6, "workers": 0, "warmup_epochs": 0.0},
}


class Constant(MeanColour):
    """The same feature for all images."""

    def patches(self, images: Tensor) -> Tensor:
        return torch.ones_like(super().patches(images))


def found(name: str, encoder: Encoder, data: Path, **settings: Any) -> list[Degenerate]:
    result = measure(name, encoder, None, data, resize=16, crop=16, **SETTINGS[name], **settings)
    return list(result.degenerate)


@pytest.mark.parametrize("name", [*SETTINGS])
def test_training_images_of_one_class(tmp_path: Path, name: str) -> None:
    data = coloured_folder(tmp_path / "data", train=4, test=2)
    encoder = tiny_encoder("vit")
    assert found(name, encoder, data) == []
    if name != "knn":
        (tmp_path / "list.txt").write_text("".join(f"red/red_{i}.png\n" for i in range(4)))
        assert found(name, encoder, data, labels=str(tmp_path / "list.txt")) == [
            Degenerate(ONE_CLASS.format(split="training")),
            Degenerate(UNSEEN_CLASS, 2, 3, ["blue", "green"]),
        ]


def test_test_images_of_one_class(tmp_path: Path) -> None:
    train, test = open_splits(coloured_folder(tmp_path / "data", train=4, test=2))
    with collecting_degenerate() as collector:
        check_classes(train, test.subset(np.flatnonzero(test.labels == 1)))
    assert collector.gathered() == [Degenerate(ONE_CLASS.format(split="test"))]


@pytest.mark.parametrize("name", ["knn", "linear"])
def test_constant_image_features(tmp_path: Path, name: str) -> None:
    data = coloured_folder(tmp_path / "data", train=4, test=2)
    assert found(name, Constant(8), data) == [Degenerate(IMAGES_EQUAL)]


def test_a_network_that_training_made_constant(tmp_path: Path) -> None:
    """The head sees the bias of the final norm alone."""
    data, encoder = coloured_folder(tmp_path / "data", train=4, test=2), tiny_encoder("vit")
    with torch.no_grad():
        encoder.backbone.trunk.norm.weight.zero_()
        encoder.backbone.trunk.norm.bias.fill_(1.0)
    assert found("finetune", encoder, data, lr=1e-9, token="image") == [Degenerate(SCORES_EQUAL)]
