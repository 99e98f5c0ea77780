"""Positives of a query patch, and the zoom on its window."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from selfpatch.ops.neighbours import neighbour_table
from selfpatch.visualization.positives import Match, View, draw_match, find_positives, torus_crop, view_around

BLUE = (20, 40, 220)


@pytest.mark.parametrize("border", ["wrap", "clip"])
@pytest.mark.parametrize("window", [3, 5, "all"])
def test_positives_are_the_most_similar_neighbours(window, border) -> None:
    features = F.normalize(torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    table = neighbour_table(5, 6, window, border)
    for match in find_positives(features, [0, 14, 29], 4, window, border):
        neighbours = table.indices[match.query][table.valid[match.query]].tolist()
        flat = features.flatten(0, 1)
        best = sorted(neighbours, key=lambda i: -float(flat[i] @ flat[match.query]))[:4]
        assert match.candidates == neighbours
        assert match.picked == best


def test_torus_crop_goes_on_at_the_other_side() -> None:
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    crop = np.asarray(torus_crop(Image.fromarray(pixels), (-2, 3, 1, 6)))
    assert np.array_equal(crop, pixels[np.ix_([3, 0, 1], [4, 5, 0])])


def test_view_stays_inside_without_wrapping_and_centres_with_it() -> None:
    grid, size = (10, 20), (320, 160)
    inside = view_around(0, grid, size, 5, wrap=False)
    assert (inside.top, inside.left, inside.rows, inside.columns) == (0, 0, 5, 10)
    around = view_around(0, grid, size, 5, wrap=True)
    assert (around.top, around.left) == (-2, -5)
    assert around.patch_box(0, grid) == around.box(0, 0) == (160, 64, 192, 96)
    assert around.patch_box(199, grid) == around.box(-1, -1)  # the last patch lies up and left of the first


def test_view_is_never_larger_than_the_grid() -> None:
    view = view_around(4, (3, 3), (300, 300), 9, wrap=True)
    assert (view.rows, view.columns) == (3, 3)


@pytest.mark.parametrize("wrap", [True, False])
def test_match_outlines_what_was_picked_and_dims_the_rest(wrap: bool) -> None:
    grid, view = (5, 5), View(0, 0, 5, 5, (200, 200))
    assert view_around(12, grid, (200, 200), 7, wrap=wrap) == view
    image = Image.new("RGB", (80, 80), (200, 200, 200))
    drawn = np.asarray(draw_match(image, Match(12, [6, 7, 11], [7]), grid, view, BLUE))

    def patch(index: int) -> np.ndarray:
        left, top, right, bottom = view.patch_box(index, grid)
        return drawn[top:bottom, left:right]

    assert (patch(7)[0] == BLUE).all()
    assert (patch(7)[20, 20] == 200).all()
    assert (patch(12)[:, 0] == 255).all()
    assert (patch(6) == 80).all()
    assert (patch(11) == 80).all()
    assert (patch(24) == 200).all()
