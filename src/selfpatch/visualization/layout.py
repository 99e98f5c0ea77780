"""Sheets of panels with captions, laid out pixel by pixel: the look that all pictures share."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfpatch.core.atomic_io import replacing
from selfpatch.core.text import visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAPER, INK, MUTED, LINE = "#ffffff", "#1b1f24", "#656d76", "#d8dee4"
SERIES = ("#e64b35", "#0072bd", "#00966e", "#cc5faa", "#d98f00", "#568228")
"""Hues of queries and curves: told apart with any colour vision (after Okabe and Ito), readable on black and white."""
FONT = "DejaVu Sans"
"""Typeface that matplotlib includes, so that pictures are the same on every machine."""
MARGIN, GAP = 32, 16
TITLE_SIZE, HEADING_SIZE, CAPTION_SIZE = 26, 18, 15
TITLE_HEIGHT, SUBTITLE_HEIGHT, HEADING_HEIGHT, CAPTION_HEIGHT = 44, 22, 32, 32
"""Heights of one line of each text, in pixels."""
MARKER_RADIUS = 12
SCALE_BAR = (56, 10)
"""Width and height of the colour bar below a similarity map, in pixels."""


@dataclass(frozen=True)
class Marker:
    """Numbered disk at a point (x, y) of a panel, in pixels."""

    number: int
    colour: str
    point: tuple[float, float] = (0, 0)


@dataclass(frozen=True)
class Panel:
    """One image of a sheet, with disks on it, and its caption, with a disk before it."""

    image: Image.Image
    caption: str = ""
    label: Marker | None = None
    scale: tuple[float, float] | None = None
    """Values of the darkest and the brightest colour of a similarity map, shown at the ends of a colour bar."""
    markers: Sequence[Marker] = ()


@dataclass(frozen=True)
class Row:
    """Panels side by side, below a heading if there is one."""

    panels: Sequence[Panel]
    heading: str = ""


@contextmanager
def house_style() -> Iterator[None]:
    """Draw with matplotlib's defaults, not the user's, and take text literally, never as mathematics."""
    import matplotlib.style

    settings = {"font.family": FONT, "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "selfpatch"}
    with matplotlib.style.context(["default", settings]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # such a character is drawn as a box
        yield


def lay_out(rows: Sequence[Row], *, title: str, subtitle: str = "") -> Image.Image:
    """Return an RGB image of rows of panels of one size, copied pixel by pixel, below a title and a subtitle.

    Raises:
        ValueError: there is no panel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [panel for row in rows for panel in row.panels]
    if not panels:
        raise ValueError("there is no image to draw; give at least one")
    panel_width, panel_height = panels[0].image.size
    text_width = max(len(row.panels) for row in rows) * (panel_width + GAP) - GAP
    lines = textwrap.wrap(subtitle, max(12, round(text_width / (0.57 * CAPTION_SIZE))))
    header = MARGIN + TITLE_HEIGHT + SUBTITLE_HEIGHT * len(lines) + GAP // 2
    above = HEADING_HEIGHT if any(row.heading for row in rows) else 0
    below = CAPTION_HEIGHT if any(panel.caption for panel in panels) else 0
    pitch = above + panel_height + below + GAP
    width, height = text_width + 2 * MARGIN, header + pitch * len(rows) - GAP + MARGIN
    with house_style():
        # At 72 dots an inch a point, the unit of text sizes, is a pixel.
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor=PAPER)
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        _text(axes, MARGIN, MARGIN + 22, fitted(title, TITLE_SIZE, text_width), TITLE_SIZE, INK)
        for i, line in enumerate(lines):
            _text(axes, MARGIN, MARGIN + TITLE_HEIGHT + SUBTITLE_HEIGHT * i + 9, line)
        for i, row in enumerate(rows):
            top = header + pitch * i
            _text(axes, MARGIN, top + 20, fitted(row.heading, HEADING_SIZE, text_width), HEADING_SIZE, INK)
            for j, panel in enumerate(row.panels):
                _draw_panel(axes, panel, MARGIN + (panel_width + GAP) * j, top + above)
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _draw_panel(axes: Axes, panel: Panel, left: int, top: int) -> None:
    """Draw the image at (left, top) and its caption below it."""
    width, height = panel.image.size
    _paste(axes, np.asarray(panel.image), left, top)
    for marker in panel.markers:
        edge = MARKER_RADIUS + 2  # near the edge of the image a marker moves inwards to be seen whole
        x, y = np.clip(marker.point, edge, (width - edge, height - edge))
        _draw_marker(axes, marker, left + x, top + y)
    middle, right = top + height + CAPTION_HEIGHT // 2 + 2, left + width
    if panel.label is not None:
        _draw_marker(axes, panel.label, left + MARKER_RADIUS - 1, middle)
        left += 2 * MARKER_RADIUS + 6
    if panel.scale is not None:
        from matplotlib import colormaps

        low, high = (f"{value:.2f}" for value in panel.scale)
        _text(axes, right, middle + 5, high, align="right")
        right -= round(text_width_of(high, CAPTION_SIZE)) + 8 + SCALE_BAR[0]
        bar = colormaps["viridis"](np.linspace(0, 1, SCALE_BAR[0]), bytes=True)[:, :3]
        _paste(axes, np.tile(bar, (SCALE_BAR[1], 1, 1)), right, middle - SCALE_BAR[1] // 2)
        _text(axes, right - 8, middle + 5, low, align="right")
        right -= 8 + round(text_width_of(low, CAPTION_SIZE)) + GAP
    _text(axes, left, middle + 5, fitted(panel.caption, CAPTION_SIZE, right - left))


def _paste(axes: Axes, pixels: np.ndarray, left: int, top: int) -> None:
    """Copy pixels [h, w, 3] onto the sheet one by one, below everything else."""
    extent = (left, left + pixels.shape[1], top + pixels.shape[0], top)
    axes.imshow(pixels, extent=extent, aspect="auto", interpolation="nearest", zorder=-1)


def _draw_marker(axes: Axes, marker: Marker, x: float, y: float) -> None:
    """Draw a numbered disk with a white rim around (x, y)."""
    axes.plot(x, y, "o", ms=2 * MARKER_RADIUS, mfc=marker.colour, mec=PAPER, mew=2, clip_on=False)
    _text(axes, x, y + 4.5, str(marker.number), 12.5, PAPER, align="center")


def _text(
    axes: Axes, x: float, y: float, text: str, size: float = CAPTION_SIZE, colour: str = MUTED, align: str = "left"
) -> None:
    """Write a line whose baseline is at y."""
    axes.text(x, y, printable(text), size=size, color=colour, ha=align, va="baseline")


def printable(text: str) -> str:
    """Return the text on one line, with what no typeface and no XML file can hold escaped."""
    return visible(" ".join(text.split()))


@cache
def text_width_of(text: str, size: float) -> float:
    """Return how wide a text is drawn, in pixels."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=FONT, size=size)
    with house_style():
        return float(text_to_path.get_text_width_height_descent(printable(text), font, False)[0])


def fitted(text: str, size: float, width: float) -> str:
    """Return the text, its end replaced by an ellipsis where it is wider than `width` pixels."""
    if text_width_of(text, size) <= width:
        return text
    while text and text_width_of(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def to_image(pixels: Tensor) -> Image.Image:
    """Return an image [C, H, W] as RGB: its first three channels, or the first in grey where there are fewer."""
    drawn = pixels[: 3 if len(pixels) >= 3 else 1].cpu()
    if drawn.dtype != torch.uint8:
        # Deeper images seldom reach their white: each channel is stretched between its 2 % and 98 % quantiles. They
        # are NumPy's, as torch's refuse more than 16 million values.
        low, high = torch.from_numpy(np.quantile(drawn.numpy(), (0.02, 0.98), axis=(1, 2)))[:, :, None, None]
        drawn = ((drawn - low) / (high - low).clamp(min=1e-12) * 255).clamp(0, 255).round().to(torch.uint8)
    return Image.fromarray(drawn.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def save_png(image: Image.Image, path: str | Path) -> Path:
    """Write an image whole or not at all, making its folder first, and return its path."""
    path = Path(path)
    with replacing(path) as file:
        image.save(file, format="PNG", optimize=True)
    return path
