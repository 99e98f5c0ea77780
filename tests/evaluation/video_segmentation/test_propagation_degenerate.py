"""Inputs that make the scores of DAVIS meaningless are named in the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.api.evaluate import evaluate
from selfpatch.evaluation.degenerate import PATCHES_EQUAL
from selfpatch.evaluation.encoders import FunctionEncoder, MeanColour
from selfpatch.evaluation.video_segmentation.clip import write_mask
from selfpatch.evaluation.video_segmentation.propagation import NO_BACKGROUND, NO_PATCH, NOTHING_FOUND
from tests.evaluation.video_segmentation.conftest import COLOURS, Tree

CONSTANT = FunctionEncoder(lambda x: torch.ones(len(x), 4, x.shape[2] // 16, x.shape[3] // 16), 16)
GREY = np.full_like(COLOURS, 90)
ONE_PIXEL, WHOLE = np.zeros((128, 192), np.uint8), np.ones((128, 192), np.uint8)
ONE_PIXEL[0, 0] = 1


@pytest.mark.parametrize(
    ("encoder", "colours", "first_mask", "expected"),
    [
        (MeanColour(16), COLOURS, None, []),
        (CONSTANT, COLOURS, None, [(PATCHES_EQUAL, 4, 4, ["toy/00000", "toy/00001", "toy/00002", "toy/00003"])]),
        (MeanColour(16), GREY, None, [(PATCHES_EQUAL, 4, 4, ["toy/00000", "toy/00001", "toy/00002", "toy/00003"])]),
        (
            MeanColour(16), COLOURS, ONE_PIXEL,
            [(NO_PATCH, 1, 1, ["object 1 of toy"]), (NOTHING_FOUND, 1, 1, ["toy"])],
        ),
        (MeanColour(16), COLOURS, WHOLE, [(NO_BACKGROUND, 1, 1, ["toy"])]),
    ],
    ids=["sound", "constant features", "frames of one colour", "an object of one pixel", "no background"],
)  # fmt: skip
def test_degenerate_inputs_are_named(
    tree: Tree, encoder: Any, colours: np.ndarray, first_mask: np.ndarray | None, expected: list[Any]
) -> None:
    root: Path = tree(frames=4, colours=colours)
    if first_mask is not None:
        write_mask(root / "Annotations/480p/toy/00000.png", first_mask)
    result = evaluate("davis", encoder, root, resolution=128)
    found = [(one.what, one.count, one.total, one.items) for one in result.degenerate]
    assert [one for one in found if one[0] != NOTHING_FOUND or one in expected] == expected
    assert bool(result.warnings) == bool(expected)


def test_an_object_that_is_followed_into_a_frame_with_a_given_one_is_found(tmp_path: Path) -> None:
    for frame in range(2):
        mask = np.zeros((128, 192), np.uint8)
        mask[16:64, 16 + 16 * frame : 64 + 16 * frame] = 1
        mask[64:112, 112:160] = 2 * frame
        write_mask(tmp_path / f"Annotations/toy/{frame:05d}.png", mask)
        picture = tmp_path / f"JPEGImages/toy/{frame:05d}.jpg"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(COLOURS[mask]).save(picture, quality=95, subsampling=0)
    result = evaluate("davis", MeanColour(16), tmp_path, resolution=128)
    assert result.metrics["J-Mean"] > 0.9
    assert NOTHING_FOUND not in [one.what for one in result.degenerate]
