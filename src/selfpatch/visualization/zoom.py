"""The surroundings of a query patch, with the patches it could have matched and the ones it did."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageDraw

from selfpatch.visualization.colour import PAPER, RGB
from selfpatch.visualization.maps import Box, torus_crop

MARGIN = 2
"""Patches shown around the window."""
DIMMED = 0.4
"""Brightness of the window's patches that were not picked."""


@dataclass(frozen=True)
class Match:
    """A query patch, the patches it could have matched and the ones it did, as flat indices into the grid."""

    query: int
    candidates: list[int]
    picked: list[int]


@dataclass(frozen=True)
class View:
    """A rectangle of patches, drawn at `size` = (width, height) pixels. It may reach over the grid's border."""

    top: int
    left: int
    rows: int
    columns: int
    size: tuple[int, int]

    def box(self, row: float, column: float, rows: float = 1, columns: float = 1) -> Box:
        """Pixels (left, top, right, bottom) of a rectangle of patches, given in the grid's coordinates."""
        x, y = self.size[0] / self.columns, self.size[1] / self.rows
        row, column = row - self.top, column - self.left
        return round(column * x), round(row * y), round((column + columns) * x), round((row + rows) * y)

    def place(self, index: int, grid: tuple[int, int]) -> Box:
        """Pixels of the patch with this flat index, wherever around the torus the view shows it."""
        h, w = grid
        row, column = divmod(index, w)
        return self.box(self.top + (row - self.top) % h, self.left + (column - self.left) % w)


def view_around(query: int, grid: tuple[int, int], size: tuple[int, int], extent: int, *, wrap: bool) -> View:
    """A view of the panel's shape, the query in its middle, `extent` patches on its short side if the grid has them.

    Args:
        wrap: keep the query in the middle even where the view then leaves the image.
    """
    (h, w), short = grid, min(size)
    rows, columns = min(h, round(extent * size[1] / short)), min(w, round(extent * size[0] / short))
    top, left = query // w - rows // 2, query % w - columns // 2
    if not wrap:
        top, left = min(max(top, 0), h - rows), min(max(left, 0), w - columns)
    return View(top, left, rows, columns, size)


def draw_match(image: Image.Image, match: Match, grid: tuple[int, int], view: View, colour: RGB) -> Image.Image:
    """The query outlined in white, the picked patches in `colour`, the window's other patches dimmed.

    Where the view leaves the image it goes on at the image's other side, as the matching does, behind a white line.
    """
    h, w = grid
    patch = image.width // w
    bottom, right = view.top + view.rows, view.left + view.columns
    crop = torus_crop(image, (view.left * patch, view.top * patch, right * patch, bottom * patch))
    drawn = crop.resize(view.size, Image.Resampling.BICUBIC)
    for index in set(match.candidates) - set(match.picked):
        place = view.place(index, grid)
        drawn.paste(drawn.crop(place).point(lambda value: round(value * DIMMED)), place)
    left, top, right, bottom = view.box(0, 0, h, w)
    outline(drawn, (left - 2, top - 2, right + 2, bottom + 2), PAPER, 2)
    width = max(2, min(4, view.size[0] // view.columns // 7))
    for index in match.picked:
        outline(drawn, view.place(index, grid), colour, width)
    outline(drawn, view.place(match.query, grid), PAPER, width)
    return drawn


def outline(image: Image.Image, box: Box, colour: RGB, width: int) -> None:
    """Draws the inner edge of the box, in place."""
    left, top, right, bottom = box
    ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), outline=colour, width=width)
