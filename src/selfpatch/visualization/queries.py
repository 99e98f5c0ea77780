"""Query patches of an image, their positives, and a zoom on them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from selfpatch.config.matching import Border, Window
from selfpatch.ops.neighbours import neighbour_table, top_positives

Sides = tuple[int, int]
CONTEXT = 2
"""Number of patches shown around the window on each side."""
DIMMED = 0.4
"""Brightness of the window's patches that were not picked."""
SPREAD = 0.5
"""Weight of the distance in the image relative to the distance in feature space."""


def patches_at(points: Sequence[tuple[float, float]], grid: tuple[int, int]) -> list[int]:
    """Return the flat indices of the patches under points (x, y), fractions of the image's width and height.

    Raises:
        ValueError: a point lies outside the image.
    """
    h, w = grid
    for x, y in points:
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise ValueError(f"query point ({x}, {y}) is outside the image; give fractions of it between 0 and 1")
    return [min(int(y * h), h - 1) * w + min(int(x * w), w - 1) for x, y in points]


def salient_patches(features: Tensor, count: int) -> list[int]:
    """Return flat indices of patches that differ and lie apart, by farthest-point sampling (Gonzalez 1985).

    The first is the patch least like the image as a whole; each next one is the patch whose nearest chosen patch is
    farthest away, in features [h, w, D] of length 1 and in the image. Features are averaged over 3x3 patches first,
    because a single odd patch is not salient, and the outer sixth of the grid is left out where it leaves anything.
    """
    h, w, _ = features.shape
    smooth = F.avg_pool2d(features.permute(2, 0, 1)[None], 3, stride=1, padding=1, count_include_pad=False)
    smooth = F.normalize(smooth[0].flatten(1).T, dim=-1)  # [N, D]
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    positions = torch.stack([rows, columns], -1).reshape(-1, 2).double() / (h * h + w * w) ** 0.5
    top, left = (max(1, side // 6) for side in (h, w))
    inner = (rows >= top) & (rows < h - top) & (columns >= left) & (columns < w - left)
    candidates = (inner if inner.any() else torch.ones_like(inner)).flatten().nonzero().flatten()
    smooth, positions = smooth[candidates].double(), positions[candidates]

    def distance(chosen: int) -> Tensor:
        # Rounded, so that patches which differ by rounding noise tie, and the first of them is taken on every machine.
        spread = (positions - positions[chosen]).norm(dim=-1)
        return ((1 - smooth @ smooth[chosen]) + SPREAD * spread).round(decimals=6)

    chosen = [int((smooth @ smooth.mean(0)).round(decimals=6).argmin())]
    nearest = distance(chosen[0])
    while len(chosen) < min(count, len(candidates)):
        chosen.append(int(nearest.argmax()))
        nearest = nearest.minimum(distance(chosen[-1]))
    return candidates[chosen].tolist()


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
    the query stays in the middle; beyond the image it continues at the opposite side, behind a white line.
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
