"""Positives of a query patch: the patches of its window that it matches best, and a zoom on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from selfpatch.ops.neighbours import Border, Window, neighbour_table, top_positives
from selfpatch.visualization.layout import RGB

Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, right and bottom excluded, as Pillow has it."""
CONTEXT = 2
"""Number of patches shown around the window on each side."""
DIMMED = 0.4
"""Brightness of the window's patches that were not picked."""
WHITE: RGB = (255, 255, 255)


@dataclass(frozen=True)
class Match:
    """A query patch, the patches of its window and the ones picked of them, as flat indices into the grid."""

    query: int
    candidates: list[int]
    picked: list[int]


def find_positives(features: Tensor, queries: Sequence[int], k: int, window: Window, border: Border) -> list[Match]:
    """Return the k positives of each query patch (SelfPatch, arXiv 2206.07990, section 3.1).

    Args:
        features: [h, w, D], of length 1.
        queries: flat indices of patches.
        k: number of positives.
        window: side of the window in patches, or `all`.
        border: `wrap` or `clip`, as in `ops.neighbours`.
    """
    h, w, _ = features.shape
    table = neighbour_table(h, w, window, border)
    positives = top_positives(features.reshape(1, h * w, -1), k, table)
    picked, valid = positives.indices[0], torch.ones(h * w, k, dtype=torch.bool)
    if positives.valid is not None:
        valid = positives.valid[0]
    return [Match(q, table.indices[q][table.valid[q]].tolist(), picked[q][valid[q]].tolist()) for q in queries]


@dataclass(frozen=True)
class View:
    """A rectangle of patches, drawn at `size` = (width, height) pixels. It may reach over the grid's border."""

    top: int
    left: int
    rows: int
    columns: int
    size: tuple[int, int]

    def box(self, row: float, column: float, rows: float = 1, columns: float = 1) -> Box:
        """Return the pixels of a rectangle of patches, given in the grid's coordinates."""
        x, y = self.size[0] / self.columns, self.size[1] / self.rows
        row, column = row - self.top, column - self.left
        return round(column * x), round(row * y), round((column + columns) * x), round((row + rows) * y)

    def patch_box(self, index: int, grid: tuple[int, int]) -> Box:
        """Return the pixels of the patch with this flat index, wherever around the torus the view shows it."""
        h, w = grid
        row, column = divmod(index, w)
        return self.box(self.top + (row - self.top) % h, self.left + (column - self.left) % w)


def view_around(query: int, grid: tuple[int, int], size: tuple[int, int], extent: int, *, wrap: bool) -> View:
    """Return a view of the panel's shape with the query in its middle.

    Args:
        query: flat index of the patch.
        grid: rows and columns of patches of the image.
        size: width and height of the panel in pixels.
        extent: number of patches along the short side, if the grid has as many.
        wrap: keep the query in the middle even where the view then leaves the image.
    """
    (h, w), short = grid, min(size)
    rows, columns = min(h, round(extent * size[1] / short)), min(w, round(extent * size[0] / short))
    top, left = query // w - rows // 2, query % w - columns // 2
    if not wrap:
        top, left = min(max(top, 0), h - rows), min(max(left, 0), w - columns)
    return View(top, left, rows, columns, size)


def draw_match(image: Image.Image, match: Match, grid: tuple[int, int], view: View, colour: RGB) -> Image.Image:
    """Outline the query in white and the picked patches in `colour`, and dim the other patches of the window.

    Where the view leaves the image it continues at the opposite side, as the matching does, behind a white line.
    """
    h, w = grid
    patch = image.width // w
    bottom, right = view.top + view.rows, view.left + view.columns
    crop = torus_crop(image, (view.left * patch, view.top * patch, right * patch, bottom * patch))
    drawn = crop.resize(view.size, Image.Resampling.BICUBIC)
    for index in set(match.candidates) - set(match.picked):
        box = view.patch_box(index, grid)
        drawn.paste(drawn.crop(box).point(lambda value: round(value * DIMMED)), box)
    left, top, right, bottom = view.box(0, 0, h, w)
    outline(drawn, (left - 2, top - 2, right + 2, bottom + 2), WHITE, 2)
    width = max(2, min(4, view.size[0] // view.columns // 7))
    for index in match.picked:
        outline(drawn, view.patch_box(index, grid), colour, width)
    outline(drawn, view.patch_box(match.query, grid), WHITE, width)
    return drawn


def torus_crop(image: Image.Image, box: Box) -> Image.Image:
    """Crop an image, continued at the opposite side where the box leaves it."""
    pixels = np.asarray(image)
    left, top, right, bottom = box
    rows, columns = np.arange(top, bottom) % image.height, np.arange(left, right) % image.width
    return Image.fromarray(pixels[rows[:, None], columns[None, :]])


def outline(image: Image.Image, box: Box, colour: RGB, width: int) -> None:
    """Draw the inner edge of a box, in place."""
    left, top, right, bottom = box
    ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), outline=colour, width=width)
