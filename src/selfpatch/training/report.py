"""What a run says of itself: a few lines before, a table after, a page to keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.training.loggers.metrics import read_metrics
from selfpatch.visualization import report as html
from selfpatch.visualization.curves import points_of

MEASURES = {
    "view_matching": "patches matched across views",
    "knn_top1": "k-NN top-1, leave one out",
    "patch_knn_top1": "k-NN top-1 of the mean patch",
}
"""What `monitoring.OnlineEvaluator` records, in words."""


def measured(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """What a run measured of itself, in percent: mean patch colour, the network at the start, trained."""
    first = next((row for row in rows if row["step"] == 0), {})
    lines = []
    for name, words in MEASURES.items():
        last = next((row for row in reversed(rows) if row["step"] > 0 and row.get(name) is not None), None)
        if last is not None:
            values = (first.get(f"{name}_mean_colour"), first.get(name), last[name])
            floor, untrained, trained = ("" if value is None else f"{100 * value:.1f}" for value in values)
            lines.append((words, floor, untrained, trained))
    return lines


def _columns(run: RunDirectory) -> tuple[str, ...]:
    return "", "mean patch colour", "untrained" if run.settings.get("init") is None else "initial weights", "trained"


def measured_table(run: RunDirectory) -> Table | None:
    """`measured` for the terminal; None where nothing was measured."""
    lines = measured(read_metrics(run.path))
    if not lines:
        return None
    table = Table(*_columns(run), title="measured, in percent; matching on held-out images")
    for line in lines:
        table.add_row(*line)
    return table


def write_run_report(run: RunDirectory, losses: Sequence[str]) -> Path:
    """Writes `report.html`: the table, the curves of these losses and of all meters, the sheet of before and after."""
    rows = read_metrics(run.path)
    sections = []
    if lines := measured(rows):
        sections.append(html.Section("Measured", [html.Table(_columns(run), lines)]))
    groups = {"Losses": losses, "Collapse meters": ["entropy", "mean_entropy", "max_entropy"]}
    groups |= {"Feature rank": ["effective_rank", "patch_rank"], "On held-out images": list(MEASURES)}
    for heading, names in groups.items():
        curves = {name: points for name in names if (points := points_of(rows, name))}
        if curves:
            sections.append(html.Section(heading, [html.Curves(curves)]))
    if (sheet := run.pictures / "before-and-after.png").is_file():
        sections.append(html.Section("Patch features", [html.Picture(sheet)]))
    return html.write_report(run.path / "report.html", run.path.name, sections)
