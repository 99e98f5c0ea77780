"""Curves over the steps of a run, as SVG: inline on a page, or as a file."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from statistics import fmean
from typing import Any

from selfpatch.visualization.colour import INK, LINE, MUTED, PAPER, SERIES

Point = tuple[float, float]

COLOURS = [f"rgb{colour}" for colour in SERIES]
DASHES = ((), (7, 5), (1, 5))
"""Lengths of strokes and gaps: further curves than there are colours take the colours again, dashed, then dotted."""
BORDERS = ("solid", "dashed", "dotted")

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 28, 14, 44
"""Room around the plot, for the numbers at its axes."""
TITLE_HEIGHT, LEGEND_LINE = 34, 22
"""Room that a file has above its plot, and for each line of names below."""
SAMPLE, SAMPLE_GAP, NAME_GAP = 31, 8, 22
"""Widths in a file's legend: of the stroke before a name, from it to the name, from there to the next stroke."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
"""Characters that XML has no way to write."""
MOST_POINTS = 400
"""Longer curves are drawn by the means of as many bins."""


def points_of(rows: Iterable[Mapping[str, Any]], name: str, x: str = "step") -> list[Point]:
    """The (x, value) pairs of one number in the rows of a metrics.jsonl.

    Rows without it, or without a finite value, are left out.
    """
    return [(float(row[x]), float(row[name])) for row in rows if _is_finite(row.get(x)) and _is_finite(row.get(name))]


def finite(points: Iterable[Point]) -> list[Point]:
    """Those that can be drawn."""
    return [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]


@dataclass(frozen=True)
class Curve:
    """One that has points. Its number, and so its colour, is its place among all that were given, drawn or not."""

    name: str
    number: int
    points: Sequence[Point]


@dataclass(frozen=True)
class Ink:
    """Colours of words and of grid lines."""

    words: str
    lines: str


OF_PAGE = Ink("var(--muted)", "var(--line)")
OF_FILE = Ink(f"rgb{MUTED}", f"rgb{LINE}")


@dataclass(frozen=True)
class Axes:
    """The range of values that the plot shows, and where on it they lie."""

    x_low: float
    x_high: float
    y_low: float
    y_high: float

    @classmethod
    def around(cls, points: Sequence[Point]) -> Axes:
        return cls(*_span([x for x, _ in points]), *_span([y for _, y in points]))

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)

    def svg(self, x_label: str, ink: Ink) -> str:
        """Grid lines and numbers."""
        left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
        heights = [(value, self.y(value)) for value in ticks(self.y_low, self.y_high)]
        lines = [f'<path d="M{left} {y:.1f}H{right}" stroke="{ink.lines}"/>' for _, y in heights]
        values = [_text(left - 10, y + 4, f"{value:.6g}", "end", ink.words) for value, y in heights]
        steps = [_text(self.x(x), bottom + 20, f"{x:.6g}", "middle", ink.words) for x in ticks(self.x_low, self.x_high)]
        label = _text((left + right) / 2, HEIGHT - 6, x_label, "middle", ink.words)
        return "".join([*lines, *values, *steps, label])


def curves_svg(curves: Mapping[str, Sequence[Point]], *, x_label: str = "step") -> str:
    """Draws each curve by its name for an HTML page, with a legend where there are several.

    Ink and grid take the page's CSS variables `--muted` and `--line`, so that they follow its light or dark theme.

    Raises:
        ValueError: no curve has a point.
    """
    drawn = _drawn(curves)
    label = _escaped(f"{', '.join(curve.name for curve in drawn)} by {x_label}")
    plot = _plot(drawn, x_label, OF_PAGE)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{plot}</svg>'
    return svg + (_legend(drawn) if len(drawn) > 1 else "")


def curves_file(curves: Mapping[str, Sequence[Point]], *, title: str, x_label: str = "step") -> str:
    """The same drawing as a file that needs no page around it: on white paper, with its title and its legend inside.

    Raises:
        ValueError: no curve has a point.
    """
    drawn = _drawn(curves)
    legend, lines = _legend_inside(drawn)
    height = TITLE_HEIGHT + HEIGHT + LEGEND_LINE * lines + 8
    box = f'x="0" y="{-TITLE_HEIGHT}" width="{WIDTH}" height="{height}" fill="rgb{PAPER}"'
    heading = _text(LEFT, -10, _cut(title, WIDTH - LEFT - RIGHT, size=15), "start", f"rgb{INK}", size=15)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
        f'viewBox="0 {-TITLE_HEIGHT} {WIDTH} {height}" font-family="{FONT}" role="img">'
        f"<title>{_escaped(title)}</title><rect {box}/>{heading}{_plot(drawn, x_label, OF_FILE)}{legend}</svg>\n"
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers within [low, high], about `count` of them: steps of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest value, pushed apart where they are one."""
    low, high = min(values), max(values)
    room = max(abs(low), abs(high), 1e-12) * 0.05
    return (low, high) if high - low > 1e-9 * room else (low - room, high + room)


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    if len(points) <= MOST_POINTS:
        return points
    edges = [round(i * len(points) / MOST_POINTS) for i in range(MOST_POINTS + 1)]
    bins = [points[start:end] for start, end in pairwise(edges)]
    return [(fmean(x for x, _ in bin), fmean(y for _, y in bin)) for bin in bins]


def _drawn(curves: Mapping[str, Sequence[Point]]) -> list[Curve]:
    """What of the curves can be drawn: their finite points, from left to right."""
    drawn = [
        Curve(name, number, _thinned(sorted(kept)))
        for number, (name, points) in enumerate(curves.items())
        if (kept := finite(points))
    ]
    if not drawn:
        raise ValueError("there is no point to draw a curve through; the rows hold none of the values asked for")
    return drawn


def _plot(drawn: Sequence[Curve], x_label: str, ink: Ink) -> str:
    axes = Axes.around([point for curve in drawn for point in curve.points])
    return axes.svg(x_label, ink) + "".join(_line(axes, curve) for curve in drawn)


def _line(axes: Axes, curve: Curve) -> str:
    places = [f"{axes.x(x):.1f} {axes.y(y):.1f}" for x, y in curve.points]
    # A curve of one point is a line of no length: its round cap shows it as a dot.
    route = "M" + "L".join(places if len(places) > 1 else places * 2)
    stroke = _stroke(curve.number, 2 if len(places) > 1 else 8)
    return f'<path d="{route}" {stroke}><title>{_escaped(curve.name)}</title></path>'


def _stroke(number: int, width: int = 2) -> str:
    """How the curve of this number is drawn."""
    dashes = DASHES[number // len(COLOURS) % len(DASHES)]
    dashed = f' stroke-dasharray="{" ".join(map(str, dashes))}"' if dashes else ""
    style = f'fill="none" stroke="{COLOURS[number % len(COLOURS)]}" stroke-width="{width}"{dashed}'
    return f'{style} stroke-linecap="round" stroke-linejoin="round"'


def _text(x: float, y: float, text: str, anchor: str, colour: str, *, size: int = 12) -> str:
    style = f'text-anchor="{anchor}" font-size="{size}" fill="{colour}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{_escaped(text)}</text>'


def _legend(drawn: Sequence[Curve]) -> str:
    """For a page: a disk before each name, a dashed or dotted stroke where the curve is."""
    entries = [f'<span><i style="{_sample(curve.number)}"></i>{_escaped(curve.name)}</span>' for curve in drawn]
    return f'<p class="legend">{"".join(entries)}</p>'


def _sample(number: int) -> str:
    colour, border = COLOURS[number % len(COLOURS)], BORDERS[number // len(COLOURS) % len(BORDERS)]
    stroke = f"width:24px;height:0;border-radius:0;vertical-align:middle;border-top:3px {border} {colour}"
    return f"background:{colour}" if border == "solid" else stroke


def _legend_inside(drawn: Sequence[Curve]) -> tuple[str, int]:
    """For a file: a stroke before each name, in as many lines below the plot as it takes; that number."""
    room, before = WIDTH - LEFT - RIGHT, SAMPLE + SAMPLE_GAP
    entries: list[str] = []
    left, lines = LEFT, 1
    for curve in drawn:
        shown = _cut(curve.name, room - before)
        width = before + math.ceil(_width(shown))
        if left > LEFT and left + width > LEFT + room:
            left, lines = LEFT, lines + 1
        y = HEIGHT + LEGEND_LINE * (lines - 0.5)
        entries.append(f'<path d="M{left} {y:.1f}h{SAMPLE}" {_stroke(curve.number)}/>')
        entries.append(_text(left + before, y + 4, shown, "start", OF_FILE.words))
        left += width + NAME_GAP
    return "".join(entries), lines


def _width(text: str, size: int = 12) -> float:
    """At most how wide a text is drawn, in pixels: nobody knows the reader's typeface."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    capitals = sum(letter.isupper() or letter in "%&@+=mw" for letter in text)
    return size * (wide + 0.82 * capitals + 0.6 * (len(text) - wide - capitals))


def _cut(text: str, width: float, *, size: int = 12) -> str:
    """The text, its end replaced by an ellipsis where it would be wider."""
    if _width(text, size) <= width:
        return text
    while text and _width(text + "\N{HORIZONTAL ELLIPSIS}", size) > width:
        text = text[:-1]
    return text.rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def _escaped(text: str) -> str:
    return escape(NO_XML.sub("\N{REPLACEMENT CHARACTER}", text))


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
