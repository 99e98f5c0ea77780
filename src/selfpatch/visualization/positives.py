"""Positives of a query patch: the patches of its window that it matches best, and a zoom on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from selfpatch.ops.neighbours import Border, Window, neighbour_table, top_positives

Sides = tuple[int, int]
CONTEXT = 2
"""Number of patches shown around the window on each side."""
DIMMED = 0.4
"""Brightness of the window's patches that were not picked."""


@dataclass(frozen=True)
class Match:
    """Flat indices of a query patch, of the patches of its window, and of those picked among them."""

    query: int
    candidates: list[int]
    picked: list[int]


def find_positives(features: Tensor, queries: Sequence[int], k: int, window: Window, border: Border) -> list[Match]:
    """Return the k positives of each query among patches [h, w, D] of length 1 (SelfPatch, arXiv 2206.07990, 3.1)."""
    h, w, _ = features.shape
    table = neighbour_table(h, w, window, border)
    positives = top_positives(features.reshape(1, h * w, -1), k, table)
    picked = positives.indices[0]
    valid = torch.ones_like(picked, dtype=torch.bool) if positives.valid is None else positives.valid[0]
    return [Match(q, table.indices[q][table.valid[q]].tolist(), picked[q][valid[q]].tolist()) for q in queries]


def zoom(
    image: Image.Image, match: Match, grid: Sides, size: Sides, *, extent: int, wrap: bool, colour: str
) -> Image.Image:
    """Enlarge the surroundings of a query patch of an image with a `grid` of (rows, columns) of patches.

    The view has `size` (width, height) in pixels and `extent` patches along its short side, if the grid has as many.
    The query is outlined in white, its positives in `colour`; the other patches of the window are dimmed. With `wrap`
    the query stays in the middle; where the view then leaves the image it continues at the opposite side, as the
    matching does, behind a white line.
    """
    (h, w), patch = grid, image.width // grid[1]
    rows, columns = (min(n, round(extent * side / min(size))) for n, side in zip(grid, size[::-1], strict=True))
    top, left = match.query // w - rows // 2, match.query % w - columns // 2
    if not wrap:
        top, left = min(max(top, 0), h - rows), min(max(left, 0), w - columns)
    rolled = np.roll(np.asarray(image), (-top * patch, -left * patch), (0, 1))[: rows * patch, : columns * patch]
    drawn = Image.fromarray(np.ascontiguousarray(rolled)).resize(size, Image.Resampling.BICUBIC)
    x, y = size[0] / columns, size[1] / rows  # of a patch in the result

    def box(index: int) -> tuple[int, int, int, int]:
        row, column = (index // w - top) % h, (index % w - left) % w
        return round(column * x), round(row * y), round((column + 1) * x), round((row + 1) * y)

    for index in set(match.candidates) - set(match.picked):
        drawn.paste(drawn.crop(box(index)).point(lambda value: round(value * DIMMED)), box(index))
    _outline(drawn, (-left * x - 2, -top * y - 2, (w - left) * x + 2, (h - top) * y + 2), "white", 2)
    width = max(2, min(4, size[0] // columns // 7))
    for index in match.picked:
        _outline(drawn, box(index), colour, width)
    _outline(drawn, box(match.query), "white", width)
    return drawn


def _outline(image: Image.Image, box: tuple[float, float, float, float], colour: str, width: int) -> None:
    """Draw the inner edge of a box, in place."""
    left, top, right, bottom = map(round, box)
    ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), outline=colour, width=width)
