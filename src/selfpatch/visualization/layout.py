"""Sheets of panels with captions, laid out pixel by pixel: the look that all pictures share."""

from __future__ import annotations

import re
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RGB = tuple[int, int, int]

PAPER, INK, MUTED, LINE = "#ffffff", "#1b1f24", "#656d76", "#d8dee4"
SERIES: tuple[RGB, ...] = (
    (230, 75, 53), (0, 114, 189), (0, 150, 110), (204, 95, 170), (217, 143, 0), (86, 130, 40),
)  # fmt: skip
"""Hues of queries and curves: told apart with any kind of colour vision (after Okabe and Ito), readable on black and
on white, dark enough to carry white numerals."""

FONT = "DejaVu Sans"
"""Typeface that comes with matplotlib, so that a picture is the same on every machine."""
MARGIN, GAP = 32, 16
TITLE_SIZE, HEADING_SIZE, CAPTION_SIZE = 26, 18, 15
TITLE_HEIGHT, SUBTITLE_HEIGHT, HEADING_HEIGHT, CAPTION_HEIGHT = 44, 22, 32, 32
"""Heights of one line of each text, in pixels."""
MARKER_RADIUS = 12
SCALE_BAR = (56, 10)
"""Width and height of the colour bar below a similarity map, in pixels."""
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
"""Characters that no typeface and no XML file can hold."""
STRETCH = (0.02, 0.98)
"""Quantiles of a channel of more than 8 bits that are drawn black and white."""


def hex_colour(colour: RGB) -> str:
    """Return a colour as matplotlib, SVG and HTML write it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


@dataclass(frozen=True)
class Marker:
    """Numbered disk at a point (x, y) of a panel, in pixels."""

    number: int
    colour: RGB
    point: tuple[float, float] = (0, 0)


@dataclass(frozen=True)
class Panel:
    """One image of a sheet and the line below it.

    Attributes:
        caption: text of the line.
        label: disk before the caption.
        scale: values of the darkest and the brightest colour of a similarity map, shown beside a colour bar.
        markers: disks on the image.
    """

    image: Image.Image
    caption: str = ""
    label: Marker | None = None
    scale: tuple[float, float] | None = None
    markers: Sequence[Marker] = ()

    @property
    def has_line(self) -> bool:
        """Whether anything stands below the image."""
        return bool(self.caption) or self.label is not None or self.scale is not None


@dataclass(frozen=True)
class Row:
    """Panels side by side, below a heading if there is one."""

    panels: Sequence[Panel]
    heading: str = ""

    @property
    def image_top(self) -> int:
        """Distance from the top of the row to its images, in pixels."""
        return HEADING_HEIGHT if self.heading else 0

    @property
    def height(self) -> int:
        """Height with heading and captions, in pixels."""
        caption = CAPTION_HEIGHT if any(panel.has_line for panel in self.panels) else 0
        return self.image_top + max(panel.image.height for panel in self.panels) + caption


@contextmanager
def house_style() -> Iterator[None]:
    """Draw with matplotlib's own defaults, whatever the user's are, and take text literally, never as mathematics."""
    import matplotlib.style

    settings = {
        "font.family": FONT, "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": "selfpatch",
    }  # fmt: skip
    with matplotlib.style.context(["default", settings]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # such a character is drawn as a box
        yield


def lay_out(rows: Sequence[Row], *, title: str, subtitle: str = "") -> Image.Image:
    """Lay out rows of panels below a title and a subtitle.

    Columns are as wide as their widest panel. Panels are copied pixel by pixel, never resampled.

    Returns:
        An RGB image, just large enough.

    Raises:
        ValueError: there is no panel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in rows if row.panels]
    if not rows:
        raise ValueError("there is no image to draw; give at least one")
    columns = range(max(len(row.panels) for row in rows))
    widths = [max(row.panels[c].image.width for row in rows if c < len(row.panels)) for c in columns]
    text_width = sum(widths) + GAP * (len(widths) - 1)
    lines = wrapped(subtitle, CAPTION_SIZE, text_width)
    header = TITLE_HEIGHT + SUBTITLE_HEIGHT * len(lines) + GAP // 2
    width = text_width + 2 * MARGIN
    height = 2 * MARGIN + header + sum(row.height for row in rows) + GAP * (len(rows) - 1)

    with house_style():
        # At 72 dots an inch a point, the unit of text sizes, is a pixel.
        figure = Figure(figsize=(width / 72, height / 72), dpi=72, facecolor=PAPER)
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        axes.set_axis_off()
        _text(axes, MARGIN, MARGIN + 22, fitted(title, TITLE_SIZE, text_width), TITLE_SIZE, INK)
        for i, line in enumerate(lines):
            _text(axes, MARGIN, MARGIN + TITLE_HEIGHT + SUBTITLE_HEIGHT * i + 9, line)
        top = MARGIN + header
        for row in rows:
            _text(axes, MARGIN, top + 20, fitted(row.heading, HEADING_SIZE, text_width), HEADING_SIZE, INK)
            left = MARGIN
            for panel, column_width in zip(row.panels, widths, strict=False):
                _draw_panel(axes, panel, left, top + row.image_top, column_width)
                left += column_width + GAP
            top += row.height + GAP
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _draw_panel(axes: Axes, panel: Panel, left: int, top: int, width: int) -> None:
    """Draw the image at (left, top) and its line within [left, left + width)."""
    _paste(axes, np.asarray(panel.image), left, top)
    for marker in panel.markers:
        x, y = (
            min(max(v, MARKER_RADIUS + 2), side - MARKER_RADIUS - 2)
            for v, side in zip(marker.point, panel.image.size, strict=True)
        )
        _draw_marker(axes, marker, left + x, top + y)
    middle, right = top + panel.image.height + CAPTION_HEIGHT // 2 + 2, left + width
    if panel.label is not None:
        _draw_marker(axes, panel.label, left + MARKER_RADIUS - 1, middle)
        left += 2 * MARKER_RADIUS + 6
    if panel.scale is not None:
        from matplotlib import colormaps

        low, high = (f"{value:.2f}" for value in panel.scale)
        _text(axes, right, middle + 5, high, CAPTION_SIZE - 1, align="right")
        right -= round(text_width_of(high, CAPTION_SIZE - 1)) + 8 + SCALE_BAR[0]
        bar = np.tile(colormaps["viridis"](np.linspace(0, 1, SCALE_BAR[0]), bytes=True)[:, :3], (SCALE_BAR[1], 1, 1))
        _paste(axes, bar, right, middle - SCALE_BAR[1] // 2)
        _text(axes, right - 8, middle + 5, low, CAPTION_SIZE - 1, align="right")
        right -= 8 + round(text_width_of(low, CAPTION_SIZE - 1)) + GAP
    _text(axes, left, middle + 5, fitted(panel.caption, CAPTION_SIZE, right - left))


def _paste(axes: Axes, pixels: np.ndarray, left: int, top: int) -> None:
    """Copy pixels [h, w, 3] onto the sheet, below everything else."""
    height = round(axes.get_ylim()[0])
    axes.get_figure().figimage(pixels, left, height - top - len(pixels), origin="upper", zorder=-1)  # type: ignore[union-attr]


def _draw_marker(axes: Axes, marker: Marker, x: float, y: float) -> None:
    """Draw a numbered disk with a white rim around (x, y)."""
    axes.plot(x, y, "o", ms=2 * MARKER_RADIUS, mfc=hex_colour(marker.colour), mec=PAPER, mew=2, clip_on=False)
    _text(axes, x, y + 4.5, str(marker.number), 12.5, PAPER, align="center")


def _text(
    axes: Axes,
    x: float,
    baseline: float,
    text: str,
    size: float = CAPTION_SIZE,
    colour: str = MUTED,
    align: str = "left",
) -> None:
    axes.text(x, baseline, printable(text), size=size, color=colour, ha=align, va="baseline")


def printable(text: str) -> str:
    """Return the text on one line, with a replacement sign for each character that cannot be drawn."""
    return UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", " ".join(text.split()))


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


def wrapped(text: str, size: float, width: float) -> list[str]:
    """Return lines of at most `width` pixels, broken between words; a wider word is cut as by `fitted`."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width_of(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(fitted(word, size, width))
    return lines


def to_image(pixels: Tensor) -> Image.Image:
    """Return any image [C, H, W] as RGB: its first three channels, or the first in grey where there are fewer.

    8-bit images are drawn as they are. Deeper ones seldom reach their white, so each channel is stretched from its 2 %
    to its 98 % quantile.
    """
    drawn = pixels[: 3 if len(pixels) >= 3 else 1].cpu()
    if drawn.dtype != torch.uint8:
        # NumPy's quantiles, as torch's refuse more than 16 million values.
        low, high = torch.from_numpy(np.quantile(drawn.numpy(), STRETCH, axis=(1, 2)))[:, :, None, None]
        drawn = ((drawn - low) / (high - low).clamp(min=1e-12) * 255).clamp(0, 255).round().to(torch.uint8)
    return Image.fromarray(drawn.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def save_png(image: Image.Image, path: str | Path) -> Path:
    """Write an image whole or not at all, making its folder first, and return its path."""
    path = Path(path)
    with replacing(path) as file:
        image.save(file, format="PNG", optimize=True)
    return path
