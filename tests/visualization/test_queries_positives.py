"""Positives of a query patch, and the zoom on its window."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageColor

from selfpatch.ops.neighbours import neighbour_table
from selfpatch.visualization.queries import Match, find_positives, zoom

BLUE = "#1428dc"


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


def numbered(h: int, w: int) -> Image.Image:
    """An image of patches of 8 pixels, each as grey as its flat index."""
    indices = np.arange(h * w, dtype=np.uint8).reshape(h, w)
    return Image.fromarray(indices.repeat(8, 0).repeat(8, 1)).convert("RGB")


def shown(drawn: Image.Image, rows: int, columns: int) -> np.ndarray:
    """The grey in the middle of each patch of a view."""
    pixels = np.asarray(drawn.convert("L"))
    y, x = (((np.arange(n) + 0.5) * side / n).astype(int) for n, side in [(rows, drawn.height), (columns, drawn.width)])
    return pixels[y[:, None], x[None, :]]


def test_zoom_stays_inside_without_wrapping_and_centres_with_it() -> None:
    """Five patches on the short side, ten on the long one."""
    image, match = numbered(10, 20), Match(0, [], [])
    inside = zoom(image, match, (10, 20), (320, 160), extent=5, wrap=False, colour=BLUE)
    np.testing.assert_array_equal(shown(inside, 5, 10), np.arange(5)[:, None] * 20 + np.arange(10))
    around = zoom(image, match, (10, 20), (320, 160), extent=5, wrap=True, colour=BLUE)
    rows, columns = (np.arange(5) - 2) % 10, (np.arange(10) - 5) % 20
    np.testing.assert_array_equal(shown(around, 5, 10), rows[:, None] * 20 + columns)
    edge = np.asarray(around)[:, 158:160]  # the white line is where the image begins, right and left of it
    assert (edge[64:] == 255).all()


def test_zoom_is_never_larger_than_the_grid() -> None:
    drawn = zoom(numbered(3, 3), Match(4, [], []), (3, 3), (300, 300), extent=9, wrap=True, colour=BLUE)
    np.testing.assert_array_equal(shown(drawn, 3, 3), np.arange(9).reshape(3, 3))


@pytest.mark.parametrize("wrap", [True, False])
def test_zoom_outlines_what_was_picked_and_dims_the_rest(wrap: bool) -> None:
    image, match = Image.new("RGB", (80, 80), (200, 200, 200)), Match(12, [6, 7, 11], [7])
    drawn = np.asarray(zoom(image, match, (5, 5), (200, 200), extent=7, wrap=wrap, colour=BLUE))

    def patch(index: int) -> np.ndarray:
        row, column = divmod(index, 5)
        return drawn[40 * row : 40 * row + 40, 40 * column : 40 * column + 40]

    assert (patch(7)[0] == ImageColor.getrgb(BLUE)).all()
    assert (patch(7)[20, 20] == 200).all()
    assert (patch(12)[:, 0] == 255).all()
    assert (patch(6) == 80).all()
    assert (patch(11) == 80).all()
    assert (patch(24) == 200).all()
