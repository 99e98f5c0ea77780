"""Evaluations of patch features remove positions if they are asked to, and record it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selfpatch.api.evaluate import evaluate
from selfpatch.config.schema import plain
from selfpatch.evaluation.encoders import MeanColour
from selfpatch.evaluation.registry import EVALUATIONS
from tests.end_to_end.test_evaluation_precision import CASES, name_of

OF_IMAGES = ("knn", "retrieval")


class Positioned(MeanColour):
    """Mean colours, and where the patch is; counts black images."""

    def __init__(self) -> None:
        super().__init__(8)
        self.dim, self.num_black = 5, 0

    def patches(self, images: Tensor) -> Tensor:
        self.num_black += int(len(images) == 1 and not images.any())
        colours = super().patches(images)
        axes = [torch.linspace(0, 3, side, device=images.device) for side in colours.shape[2:]]
        positions = torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(len(images), -1, -1, -1)
        return torch.cat([colours, 1 + positions], 1)


@pytest.mark.parametrize(("name", "write", "settings"), [c for c in CASES if c[0] not in OF_IMAGES], ids=name_of)
def test_positions_are_removed_on_request_alone(
    tmp_path: Path, name: str, write: Any, settings: dict[str, Any]
) -> None:
    data, black = write(tmp_path / "data"), {}
    for rank in (0, 2):
        encoder = Positioned()
        result = evaluate(name, encoder, data, debias=rank, **settings)
        assert result.settings["debias"] == rank
        black[rank] = encoder.num_black
    assert 0 == black[0] < black[2]


@pytest.mark.parametrize("name", OF_IMAGES)
def test_evaluations_of_image_features_have_no_such_setting(name: str) -> None:
    assert "debias" not in plain(EVALUATIONS[name]())
