"""Features that are not finite end every evaluation with a sentence, instead of a score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfpatch.api.evaluate import evaluate
from selfpatch.api.show import show
from selfpatch.evaluation.encoders import MeanColour
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.finite_features import NonFiniteFeatures
from tests.end_to_end.test_evaluation_precision import CASES, name_of
from tests.helpers.block_images import write_blocks
from tests.helpers.labelled_images import coloured_folder, tiny_encoder


class Broken(MeanColour):
    """An encoder of somebody else; one value of its features is not finite."""

    def __init__(self) -> None:
        super().__init__(8)

    def patches(self, images: Tensor) -> Tensor:
        features = super().patches(images)
        features[-1, -1, -1, -1] = torch.inf
        return features


@pytest.mark.parametrize(("name", "write", "settings"), CASES, ids=name_of)
def test_no_evaluation_scores_them(tmp_path: Path, name: str, write: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(NonFiniteFeatures, match=r"the Broken: the features of batch 1 \(\d+ x \d+ x \d+ pixels\) are"):
        evaluate(name, Broken(), write(tmp_path / "data"), out=tmp_path / "out", **settings)
    assert not (tmp_path / "out" / "result.json").exists()


def broken_network(kind: str = "vit") -> BranchEncoder:
    """A network of which one weight is not finite."""
    encoder = tiny_encoder(kind)
    norm = next(module for module in encoder.modules() if isinstance(module, nn.LayerNorm))
    with torch.no_grad():
        norm.weight[0] = torch.nan
    return encoder


@pytest.mark.parametrize(("name", "write", "settings"), CASES, ids=name_of)
def test_no_evaluation_scores_a_network_of_them(
    tmp_path: Path, name: str, write: Any, settings: dict[str, Any]
) -> None:
    with pytest.raises(NonFiniteFeatures, match=r"the BranchEncoder: .* not finite; use an earlier checkpoint"):
        evaluate(name, broken_network(), write(tmp_path / "data"), **settings)


@pytest.mark.parametrize(
    ("name", "write", "settings"),
    [
        ("linear", coloured_folder, {"resize": 16, "crop": 16, "lrs": (0.5,), "epochs": 1, "workers": 0}),
        (
            "segment",
            write_blocks,
            {"method": "finetune", "preset": "small", "crop": 32, "epochs": 1, "warmup_epochs": 0, "batch_size": 2},
        ),
        ("segment", write_blocks, {"method": "fpn", "preset": "small", "crop": 32, "steps": 3, "batch_size": 2}),
    ],
    ids=name_of,
)
def test_no_training_goes_on_with_them(tmp_path: Path, name: str, write: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"features of batch 1 .* are not finite|the loss is nan at step 0"):
        evaluate(name, broken_network(), write(tmp_path / "data"), **settings)


def test_no_picture_shows_them(tmp_path: Path) -> None:
    folder = coloured_folder(tmp_path / "data")
    image = sorted(folder.rglob("*.png"))[0]
    with pytest.raises(ValueError, match="not finite"):
        show(broken_network(), [image], tmp_path / "out", resolution=32)
