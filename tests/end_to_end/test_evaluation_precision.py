"""Evaluations encode in the precision that they are asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from selfpatch.api.evaluate import evaluate
from selfpatch.evaluation.encoders import MeanColour
from tests.evaluation.depth.conftest import write_depth
from tests.evaluation.geometric_correspondence.conftest import write_navi
from tests.evaluation.object_discovery.conftest import square, write_voc
from tests.evaluation.retrieval.conftest import write_retrieval
from tests.evaluation.view_matching.conftest import write_pictures
from tests.helpers.block_images import write_blocks
from tests.helpers.command_line import write_davis
from tests.helpers.labelled_images import coloured_folder
from tests.helpers.spair_data import write_spair


class Watched(MeanColour):
    """Notes whether autocast is on whenever it encodes."""

    def __init__(self) -> None:
        super().__init__(8)
        self.seen: set[bool] = set()

    def patches(self, images: Tensor) -> Tensor:
        self.seen.add(torch.is_autocast_enabled("cpu"))
        return super().patches(images)


def write_pair(root: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    points = {"src_kps": [[3.5, 3.5]], "trg_kps": [[3.5, 60.0]]}
    return write_spair(root, {"000000-a-a:cat": points}, {"a": pixels})


def write_object(root: Path) -> Path:
    return write_voc(root, {"image": (square(24, 16, 64, 48), [((25, 17, 64, 48), "")])})


BLOCKS = {"resolution": 32, "memory_patches": 60}


CASES: list[tuple[str, Any, dict[str, Any]]] = [
    ("knn", coloured_folder, {"resize": 16, "crop": 16, "ks": (1,)}),
    ("segment", write_blocks, {"method": "knn", "k": 3, **BLOCKS}),
    ("segment", write_blocks, {"method": "logistic", **BLOCKS}),
    ("segment", write_blocks, {"method": "kmeans", **BLOCKS}),
    *[
        (
            "segment",
            write_blocks,
            {"method": "linear", "preset": "small", "crop": 32, "steps": 1, "batch_size": 2, "test": test},
        )
        for test in ("whole", "square", "slide")
    ],
    ("davis", write_davis, {"resolution": 48}),
    ("correspond", write_pair, {"facet": "token", "resolution": 64}),
    ("depth", write_depth, {"region": "whole", "crop": (32, 48), "batch_size": 2, "steps": 1, "workers": 0}),
    ("retrieval", write_retrieval, {}),
    ("navi", write_navi, {"resolution": 64, "every": 2, "num_matches": 20}),
    ("match", write_pictures, {"resolution": 32}),
    ("discover", write_object, {"methods": ("lost", "tokencut")}),
]
"""Name, data and settings of each evaluation of a frozen encoder."""


def name_of(value: Any) -> str | None:
    """Return the part of a test's name that settings give."""
    return str(value.get("method", "")) + str(value.get("test", "")) if isinstance(value, dict) else None


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(("name", "write", "settings"), CASES, ids=name_of)
def test_the_encoder_runs_in_the_precision(
    tmp_path: Path, name: str, write: Any, settings: dict[str, Any], precision: str
) -> None:
    encoder = Watched()
    result = evaluate(name, encoder, write(tmp_path / "data"), precision=precision, **settings)
    assert result.settings["precision"] == precision
    assert encoder.seen == {precision == "bf16"}
