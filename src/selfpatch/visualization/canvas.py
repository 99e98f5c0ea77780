"""Lays panels with captions out on one sheet of paper: the look that all pictures share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from selfpatch.core.atomic_io import replacing
from selfpatch.visualization.colour import INK, MUTED, PAPER, RGB, viridis

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

MARGIN = 32
GAP = 16
TITLE_SIZE = 30
HEADING_SIZE = 20
CAPTION_SIZE = 18
SUBTITLE_HEIGHT = 26
"""Of each line of a subtitle."""
CAPTION_HEIGHT = 32
HEADING_HEIGHT = 34
SCALE_BAR = (56, 10)


@dataclass(frozen=True)
class Panel:
    """One image of a sheet and the line under it: a numbered dot, a caption, a scale of colours at its right end."""

    image: Image.Image
    caption: str = ""
    number: int | None = None
    colour: RGB = INK
    scale: tuple[float, float] | None = None
    """The values that the darkest and the brightest colour of the map stand for."""

    @property
    def has_line(self) -> bool:
        return bool(self.caption) or self.number is not None or self.scale is not None


@dataclass(frozen=True)
class Row:
    """Panels side by side, under a heading if there is one."""

    panels: Sequence[Panel]
    heading: str = ""

    @property
    def height(self) -> int:
        caption = CAPTION_HEIGHT if any(p.has_line for p in self.panels) else 0
        return (HEADING_HEIGHT if self.heading else 0) + max(p.image.height for p in self.panels) + caption


@cache
def font(size: int) -> Font:
    """Pillow's own typeface, so that a picture is the same on every machine."""
    return ImageFont.load_default(size)


def lay_out(rows: Sequence[Row], *, title: str, subtitle: str = "") -> Image.Image:
    """Rows of panels below a title and a subtitle. Columns are as wide as their widest panel.

    Returns:
        An RGB image, just large enough.

    Raises:
        ValueError: there is no panel to lay out.
    """
    rows = [row for row in rows if row.panels]
    if not rows:
        raise ValueError("there is no image to draw; give at least one")
    columns = max(len(row.panels) for row in rows)
    widths = [max(row.panels[c].image.width for row in rows if c < len(row.panels)) for c in range(columns)]
    width = 2 * MARGIN + sum(widths) + GAP * (columns - 1)
    text_width = width - 2 * MARGIN
    lines = wrapped(subtitle, CAPTION_SIZE, text_width)
    header = 44 + (SUBTITLE_HEIGHT * len(lines) + 2 if lines else 0) + 8
    height = 2 * MARGIN + header + sum(row.height for row in rows) + GAP * (len(rows) - 1)

    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN - 6), fitted(title, TITLE_SIZE, text_width), INK, font(TITLE_SIZE))
    for number, line in enumerate(lines):
        draw.text((MARGIN, MARGIN + 36 + SUBTITLE_HEIGHT * number), line, MUTED, font(CAPTION_SIZE))
    top = MARGIN + header
    for row in rows:
        _draw_row(sheet, row, top, widths)
        top += row.height + GAP
    return sheet


def _draw_row(sheet: Image.Image, row: Row, top: int, widths: Sequence[int]) -> None:
    if row.heading:
        text = fitted(row.heading, HEADING_SIZE, sheet.width - 2 * MARGIN)
        ImageDraw.Draw(sheet).text((MARGIN, top + 2), text, INK, font(HEADING_SIZE))
        top += HEADING_HEIGHT
    left = MARGIN
    for panel, width in zip(row.panels, widths, strict=False):
        sheet.paste(panel.image, (left, top))
        _draw_line(sheet, panel, left, top + panel.image.height, width)
        left += width + GAP


def _draw_line(sheet: Image.Image, panel: Panel, left: int, top: int, width: int) -> None:
    """The line under a panel, within [left, left + width)."""
    draw = ImageDraw.Draw(sheet)
    middle, right = top + CAPTION_HEIGHT // 2 + 2, left + width
    if panel.number is not None:
        draw_marker(sheet, (left + 11, middle), panel.colour, panel.number, radius=11)
        left += 30
    if panel.scale is not None:
        right = _draw_scale(sheet, panel.scale, right, middle) - GAP
    draw.text((left, middle), fitted(panel.caption, CAPTION_SIZE, right - left), MUTED, font(CAPTION_SIZE), anchor="lm")


def _draw_scale(sheet: Image.Image, scale: tuple[float, float], right: int, middle: int) -> int:
    """`low [bar] high`, flush right; its left end."""
    draw, face = ImageDraw.Draw(sheet), font(CAPTION_SIZE - 2)
    low, high = (f"{value:.2f}" for value in scale)
    draw.text((right, middle), high, MUTED, face, anchor="rm")
    left = right - int(face.getlength(high)) - 8 - SCALE_BAR[0]
    colours = np.tile(viridis(np.linspace(0, 1, SCALE_BAR[0])), (SCALE_BAR[1], 1, 1))
    sheet.paste(Image.fromarray(colours), (left, middle - SCALE_BAR[1] // 2))
    draw.text((left - 8, middle), low, MUTED, face, anchor="rm")
    return left - 8 - int(face.getlength(low))


def fitted(text: str, size: int, width: float) -> str:
    """The text, its end cut off and replaced by an ellipsis where it is wider than `width` pixels."""
    face = font(size)
    if face.getlength(text) <= width:
        return text
    while text and face.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def wrapped(text: str, size: int, width: float) -> list[str]:
    """The text in lines of at most `width` pixels, broken between words; a word that is wider is cut as by `fitted`."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font(size).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(fitted(word, size, width))
    return lines


def draw_marker(image: Image.Image, centre: tuple[float, float], colour: RGB, number: int, *, radius: int = 12) -> None:
    """A numbered disk with a white rim, drawn in place; near the image's edge it moves inwards to be seen whole."""
    fine, side = 4, 2 * radius + 4
    x, y = (
        min(max(place, side / 2), max(length - side / 2, side / 2))
        for place, length in zip(centre, image.size, strict=True)
    )
    stamp = Image.new("L", (side * fine, side * fine))
    ImageDraw.Draw(stamp).ellipse((0, 0, side * fine - 1, side * fine - 1), 255)
    rim = stamp.resize((side, side), Image.Resampling.BOX)
    stamp.paste(0, (0, 0, *stamp.size))
    ImageDraw.Draw(stamp).ellipse((2 * fine, 2 * fine, (side - 2) * fine - 1, (side - 2) * fine - 1), 255)
    disk = stamp.resize((side, side), Image.Resampling.BOX)

    corner = (round(x - side / 2), round(y - side / 2))
    image.paste(Image.new("RGB", (side, side), PAPER), corner, rim)
    image.paste(Image.new("RGB", (side, side), colour), corner, disk)
    middle = (corner[0] + side / 2, corner[1] + side / 2)
    ImageDraw.Draw(image).text(middle, str(number), PAPER, font(round(radius * 1.3)), anchor="mm")


def save_png(image: Image.Image, path: str | Path) -> Path:
    """Writes the image whole or not at all, making its folder on the way; the path it is at."""
    path = Path(path)
    with replacing(path) as file:
        image.save(file, format="PNG", optimize=True)
    return path
