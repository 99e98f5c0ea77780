"""Curves over the steps of a run, as inline SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from statistics import fmean
from typing import Any

from selfpatch.pictures.colour import SERIES

Point = tuple[float, float]

COLOURS = [f"rgb{colour}" for colour in SERIES]

WIDTH, HEIGHT = 720, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 14, 44
"""Room around the plot, for the numbers at its axes."""
MOST_POINTS = 400
"""Longer curves are drawn by the means of as many bins."""


def points_of(rows: Iterable[Mapping[str, Any]], name: str, x: str = "step") -> list[Point]:
    """The (x, value) pairs of one number in the rows of a metrics.jsonl.

    Rows without it, or without a finite value, are left out.
    """
    return [(float(row[x]), float(row[name])) for row in rows if _is_finite(row.get(x)) and _is_finite(row.get(name))]


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

    def svg(self, x_label: str) -> str:
        """Grid lines and numbers."""
        left, right, bottom = LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM
        heights = [(value, self.y(value)) for value in ticks(self.y_low, self.y_high)]
        lines = [f'<path d="M{left} {y:.1f}H{right}" stroke="var(--line)"/>' for _, y in heights]
        values = [_text(left - 10, y + 4, f"{value:.6g}", "end") for value, y in heights]
        steps = [_text(self.x(x), bottom + 20, f"{x:.6g}", "middle") for x in ticks(self.x_low, self.x_high)]
        return "".join([*lines, *values, *steps, _text((left + right) / 2, HEIGHT - 6, x_label, "middle")])


def curves_svg(curves: Mapping[str, Sequence[Point]], *, x_label: str = "step") -> str:
    """Draws each curve by its name, with a legend where there are several.

    Ink and grid take the page's CSS variables `--muted` and `--line`, so that they follow its light or dark theme.

    Raises:
        ValueError: no curve has a point.
    """
    drawn = {name: _thinned(sorted(points)) for name, points in curves.items() if points}
    if not drawn:
        raise ValueError("there is no point to draw a curve through; the rows hold none of the values asked for")
    axes = Axes.around([point for points in drawn.values() for point in points])
    lines = [_line(axes, points, name, COLOURS[i % len(COLOURS)]) for i, (name, points) in enumerate(drawn.items())]
    label = escape(f"{', '.join(drawn)} by {x_label}")
    svg = (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{axes.svg(x_label)}{"".join(lines)}</svg>'
    )
    return svg + (_legend(list(drawn)) if len(drawn) > 1 else "")


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


def _line(axes: Axes, points: Sequence[Point], name: str, colour: str) -> str:
    places = [f"{axes.x(x):.1f} {axes.y(y):.1f}" for x, y in points]
    # A curve of one point is a line of no length: its round cap shows it as a dot.
    route = "M" + "L".join(places if len(places) > 1 else places * 2)
    width = 2 if len(places) > 1 else 8
    style = f'fill="none" stroke="{colour}" stroke-width="{width}" stroke-linecap="round" stroke-linejoin="round"'
    return f'<path d="{route}" {style}><title>{escape(name)}</title></path>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    style = f'text-anchor="{anchor}" font-size="12" fill="var(--muted)"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def _legend(names: Sequence[str]) -> str:
    dots = [f'<i style="background:{COLOURS[i % len(COLOURS)]}"></i>' for i in range(len(names))]
    entries = [f"<span>{dot}{escape(name)}</span>" for dot, name in zip(dots, names, strict=True)]
    return f'<p class="legend">{"".join(entries)}</p>'


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
