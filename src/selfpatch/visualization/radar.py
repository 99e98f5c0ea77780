"""Radar of scores from 0 to 1: a spoke for each benchmark, a polygon for each network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from selfpatch.core.atomic_io import replacing
from selfpatch.visualization.layout import INK, LINE, MUTED, PAPER, SERIES, fitted, house_style, printable

SIDE, DPI, SIZE = 8.0, 110, 11
"""Side of the picture in inches, pixels per inch, and size of the words in points."""
ROOM = 96
"""Width of a label in points."""
MIN_SPOKES = 3


def draw_radar(
    path: Path, spokes: Sequence[str], scores: Mapping[str, Sequence[float | None]], title: str, note: str = ""
) -> Path:
    """Draw the scores of networks as a PNG, and return its path.

    A network without a score of a benchmark has a gap there. Rings are 20 % apart.

    Args:
        path: file to write.
        spokes: names of the benchmarks, at least `MIN_SPOKES`; a line break separates two lines.
        scores: score of each benchmark by network, in [0, 1].
        title: heading of the picture.
        note: text below the heading, e.g. what the picture does not show; the end of a long one is cut off.
    """
    from matplotlib.figure import Figure

    angles = np.linspace(0, 2 * np.pi, len(spokes), endpoint=False)
    with house_style():
        figure = Figure(figsize=(SIDE, SIDE), dpi=DPI, facecolor=PAPER)
        axes = figure.add_axes((0.2, 0.17, 0.6, 0.62), projection="polar", facecolor="none")
        axes.set_theta_zero_location("N")  # type: ignore[attr-defined]
        axes.set_theta_direction(-1)  # type: ignore[attr-defined]
        for number, (name, values) in enumerate(scores.items()):
            closed = np.array([*values, values[0]], dtype=float)  # None becomes nan, which breaks the line
            colour = SERIES[number % len(SERIES)]
            dash = "-" if number < len(SERIES) else "--"
            axes.plot([*angles, 2 * np.pi], closed, colour, ls=dash, lw=2, marker="o", ms=5, label=f"\u200b{name}")
            if not np.isnan(closed).any():
                axes.fill([*angles, 2 * np.pi], closed, colour, alpha=0.08)
        axes.set_ylim(0, 1)
        rings = [0.2, 0.4, 0.6, 0.8, 1.0]
        axes.set_yticks(rings, [f"{ring:.0%}" for ring in rings], size=SIZE - 3, color=MUTED)
        labels = ["\n".join(fitted(printable(line), SIZE, ROOM) for line in spoke.split("\n")) for spoke in spokes]
        axes.set_xticks(angles, labels)
        for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
            sine, cosine = np.sin(angle), np.cos(angle)
            ha = "center" if abs(sine) < 0.1 else "left" if sine > 0 else "right"
            va = "center" if abs(cosine) < 0.9 else "bottom" if cosine > 0 else "top"  # long ones grow outwards
            label.set(size=SIZE, color=INK, ha=ha, va=va)
        axes.grid(color=LINE, lw=1)
        axes.spines["polar"].set_color(LINE)
        figure.text(0.05, 0.95, fitted(printable(title), SIZE + 5, 0.9 * SIDE * 72), size=SIZE + 5, color=INK)
        figure.text(0.05, 0.92, fitted(printable(note), SIZE - 2, 0.9 * SIDE * 72), size=SIZE - 2, color=MUTED)
        names = [fitted(printable(name), SIZE, 0.8 * SIDE * 72) for name in scores]
        legend = figure.legend(
            axes.get_lines(), names, loc="lower left", bbox_to_anchor=(0.04, 0.01), frameon=False, fontsize=SIZE
        )
        for text in legend.get_texts():
            text.set_color(MUTED)
        with replacing(path) as file:
            figure.savefig(file, format="png", metadata={"Software": None})
    return path
