"""Pictures of matched views: patches in the colour of what was found."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from selfpatch.evaluation.pictures import LINE_HEIGHT
from selfpatch.evaluation.view_matching import visualize
from selfpatch.evaluation.view_matching.dataset import ViewPairs
from selfpatch.evaluation.view_matching.metrics import match_patches
from selfpatch.evaluation.view_matching.visualize import SIDE, draw_matches


def test_a_wide_view_is_drawn_in_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 2 x 8 patches all but the right half of the upper row is found."""
    monkeypatch.setattr(visualize, "NUM_LINES", 0)
    boxes = torch.tensor([[0.0, 0, 80, 20, 0]])
    features = torch.eye(16).view(1, 2, 8, 16)
    moved = features.clone()
    moved[0, 0, 4:] = features[0, 0, 4:].flip(0)
    matches = match_patches(features, moved, boxes, boxes)
    grey = torch.full((1, 3, 16, 64), 100, dtype=torch.uint8)
    picture = np.asarray(draw_matches(ViewPairs(grey, grey, boxes, boxes), matches, 0, 8)).astype(int)
    assert picture.shape == (SIDE // 2 + LINE_HEIGHT, 4 * SIDE, 3), "a legend is below"
    side = SIDE // 4
    red, green, _ = np.moveaxis(picture[side // 2 :: side, side // 2 :: side] - 100, -1, 0)
    wrong = np.zeros((2, 8), bool)
    wrong[0, [4, 7]] = True  # the two in the middle are one patch away, which is near enough
    assert ((red[:, :8] > 0) == wrong).all()
    assert ((green[:, :8] > 0) == ~wrong).all()
    assert (red[:, 8:] == 0).all()


def test_patches_have_the_colour_of_right_and_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4 x 4 patches the left half does not count; the others are found but for the last row."""
    monkeypatch.setattr(visualize, "NUM_LINES", 0)
    boxes_a, boxes_b = torch.tensor([[0.0, 0, 40, 40, 0]]), torch.tensor([[20.0, 0, 40, 40, 0]])
    features = torch.eye(16).view(1, 4, 4, 16)
    moved = features.roll(-2, dims=2).clone()
    moved[0, 3] = features[0, 0].roll(-2, dims=0)  # the patches of the last row are found nowhere
    matches = match_patches(features, moved, boxes_a, boxes_b)
    grey = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    picture = np.asarray(draw_matches(ViewPairs(grey, grey, boxes_a, boxes_b), matches, 0, 8)).astype(int)
    assert picture.shape == (SIDE + LINE_HEIGHT, 2 * SIDE, 3)
    patches = picture[SIDE // 8 :: SIDE // 4, SIDE // 8 :: SIDE // 4]  # the centres of both views' patches
    red, green, _ = np.moveaxis(patches - 100, -1, 0)
    assert (patches[:, [0, 1, 4, 5, 6, 7]] == 100).all()
    assert ((green[:3, 2:4] > 0) & (red[:3, 2:4] < 0)).all()
    assert ((green[3, 2:4] < 0) & (red[3, 2:4] > 0)).all()
