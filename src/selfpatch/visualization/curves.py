"""Curves over the steps of a run, as one SVG that stands alone and follows the reader's light or dark theme."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from selfpatch.visualization import layout
from selfpatch.visualization.layout import FONT, INK, LINE, MUTED, PAPER, SERIES, fitted, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

Point = tuple[float, float]

DASHES = ("-", (0, (5, 3)), (0, (1, 2.5)))
"""Strokes. Extra curves reuse colours, dashed, then dotted."""
WIDTH, PLOT_HEIGHT, TITLE_HEIGHT, LABEL_HEIGHT, LEGEND_LINE, SIZE = 720, 242, 28, 20, 20, 12
LEFT, RIGHT, TOP, BOTTOM = 64, 28, 14, 44
"""Room around the plot, for the numbers at its axes, in pixels."""
MAX_POINTS = 400
"""Largest number of points of a curve; longer ones are drawn by the means of this number of bins."""
PAGE_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"
DARK = "".join(
    f'[style*="{name}: {light}"] {{ {name}: {dark} !important }}\n'
    for name, light, dark in [
        ("fill", PAPER, "#0d1117"), ("fill", INK, "#e6edf3"), ("fill", MUTED, "#9198a1"), ("stroke", LINE, "#30363d"),
    ]
)  # fmt: skip
"""Colours of paper, words and grid lines for readers who prefer a dark theme."""


def points_of(rows: Iterable[Mapping[str, Any]], name: str) -> list[Point]:
    """Return the (step, value) pairs of one number in the rows of a metrics.jsonl, where both are finite."""
    return finite((row.get("step"), row.get(name)) for row in rows)


def finite(points: Iterable[tuple[Any, Any]]) -> list[Point]:
    """Return the points that can be drawn."""
    return [(float(x), float(y)) for x, y in points if _is_finite(x) and _is_finite(y)]


def curves_svg(
    curves: Mapping[str, Sequence[Point]],
    *,
    title: str = "",
    x_label: str = "step",
    y_label: str = "",
    baselines: Mapping[str, float] = MappingProxyType({}),
) -> str:
    """Draw each curve by its name, with a legend below the plot; curves without points keep their colours reserved.

    `y_label`, the quantity and its unit, is written above the vertical axis. Baselines are values that curves are
    compared with: a thin level line each, named at its end.

    Raises:
        ValueError: no curve has a point.
    """
    from matplotlib.figure import Figure

    indexed = [(i, name, finite(points)) for i, (name, points) in enumerate(curves.items())]
    drawn = [(i, name, _thinned(sorted(points))) for i, name, points in indexed if points]
    if not drawn:
        raise ValueError("there is no point to draw a curve through; name values that the rows hold")
    room = WIDTH - LEFT - RIGHT
    names = [fitted(printable(name), SIZE, room - 40) for _, name, _ in drawn]
    widths = [layout.text_width_of(name, SIZE) + 58 for name in names]
    columns = len(names) if sum(widths) <= room else max(1, int(room / max(widths)))
    below = BOTTOM + LEGEND_LINE * math.ceil(len(names) / columns) + 8
    above = TOP + (TITLE_HEIGHT if title else 0) + (LABEL_HEIGHT if y_label else 0)
    height = above + PLOT_HEIGHT + below
    with layout.house_style():
        figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72, facecolor=PAPER)
        box = (LEFT / WIDTH, below / height, room / WIDTH, PLOT_HEIGHT / height)
        axes = figure.add_axes(box, facecolor="none")
        lines = [_plot(axes, index, points) for index, _, points in drawn]
        for name, value in baselines.items():
            axes.axhline(value, color=MUTED, lw=1, ls=(0, (4, 4)))
            label = fitted(printable(name), SIZE - 1, room - 20)
            axes.annotate(
                label, (1, value), (0, 4), ha="right", size=SIZE - 1, color=MUTED,
                xycoords=axes.get_yaxis_transform(), textcoords="offset points",
            )  # fmt: skip
        axes.margins(x=0, y=0.06 if baselines else 0.03)
        axes.spines[:].set_visible(False)
        axes.grid(axis="y", color=LINE, lw=1)
        axes.tick_params(length=0, pad=8, labelsize=SIZE, labelcolor=MUTED)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:.6g}")
        axes.locator_params(nbins=5, steps=[1, 2, 5, 10])
        axes.set_xlabel(printable(x_label), size=SIZE, color=MUTED)
        if y_label:
            label = fitted(printable(y_label), SIZE, room)
            figure.text(12 / WIDTH, (below + PLOT_HEIGHT + 14) / height, label, size=SIZE, color=MUTED)
        if title:
            heading = fitted(printable(title), SIZE + 3, room)
            figure.text(LEFT / WIDTH, 1 - 26 / height, heading, size=SIZE + 3, color=INK)
        legend = figure.legend(
            lines, ["?"] * len(lines), ncols=columns, loc="lower left", bbox_to_anchor=(LEFT / WIDTH, 4 / height),
            frameon=False, fontsize=SIZE, labelcolor=MUTED, borderpad=0, borderaxespad=0, labelspacing=0.5,
            handlelength=2.2, handletextpad=0.7, columnspacing=1.8,
        )  # fmt: skip
        for text, name in zip(legend.get_texts(), names, strict=True):
            text.set_text(name)  # set here, as a label that begins with an underscore would be left out
        file, named = io.StringIO(), {"Title": printable(title)} if title else {}
        undated = dict.fromkeys(["Date", "Creator", "Format", "Type"])
        figure.savefig(file, format="svg", metadata=undated | named)
    dark = f"\n@media (prefers-color-scheme: dark) {{\n{DARK}}}</style>"
    return file.getvalue().replace("</style>", dark, 1).replace(f"'{FONT}'", PAGE_FONT)


def _plot(axes: Axes, index: int, points: np.ndarray) -> Line2D:
    """Draw the curve of this index; a single point is a dot."""
    dash, colour = DASHES[index // len(SERIES) % len(DASHES)], SERIES[index % len(SERIES)]
    marker = "o" if len(points) == 1 else "none"
    (line,) = axes.plot(*points.T, color=colour, ls=dash, lw=2, marker=marker, ms=7, clip_on=False)
    return line


def _thinned(points: Sequence[Point]) -> np.ndarray:
    """Return points [n, 2], binned where there are more than the picture can show."""
    values = np.array(points, dtype=np.float64)
    return np.stack([part.mean(0) for part in np.array_split(values, min(MAX_POINTS, len(values)))])


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
