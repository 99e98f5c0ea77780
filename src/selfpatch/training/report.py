"""The report of a run: a table for the terminal and a page to keep."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.training.collapse import describe_uniform, losses_at_uniform
from selfpatch.training.loggers.metrics import read_numbers
from selfpatch.visualization import report as html
from selfpatch.visualization.curves import points_of

MEASURES = {
    "view_matching": "patches matched across views",
    "knn_top1": "k-NN top-1, leave one out",
    "patch_knn_top1": "k-NN top-1 of the mean patch",
}
"""Metrics of `online_eval.OnlineEvaluator` in words."""
SETTINGS = ("data", "recipe", "method", "objective", "model", "patch_size", "init", "epochs", "batch_size", "seed")
"""Settings that the page lists."""


def measured(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Return each metric in words and in percent: of mean patch colours, at the start, and trained."""
    first = next((row for row in rows if row["step"] == 0), {})
    lines = []
    for name, words in MEASURES.items():
        last = next((row for row in reversed(rows) if row["step"] > 0 and row.get(name) is not None), None)
        if last is not None:
            values = (first.get(f"{name}_mean_colour"), first.get(name), last[name])
            baseline, untrained, trained = ("" if value is None else f"{100 * value:.1f}" for value in values)
            lines.append((words, baseline, untrained, trained))
    return lines


def losses_without_progress(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return one line about losses that end at the value of uniform predictions, or None if there are none."""
    last: Mapping[str, Any] = next((row for row in reversed(rows) if row.get("loss") is not None), {})
    found = losses_at_uniform(last)
    return f"no better than uniform predictions at the end: {describe_uniform(found)}" if found else None


def _columns(run: RunDirectory) -> tuple[str, ...]:
    return "", "mean patch colour", "untrained" if run.settings.get("init") is None else "initial weights", "trained"


def measured_table(run: RunDirectory) -> Table | None:
    """Return `measured` for the terminal, or None if nothing was measured."""
    table = Table(*_columns(run), title="measured, in percent; matching on held-out images")
    for line in measured(read_numbers(run.path)):
        table.add_row(*line)
    return table if table.rows else None


def write_run_report(run: RunDirectory, losses: Sequence[str]) -> Path:
    """Write `report.html`: the metrics, the curves of all meters, the sheet of before and after, and the settings.

    `losses` names the losses in the metrics.
    """
    rows = read_numbers(run.path)
    sections = []
    if lines := measured(rows):
        sections.append(html.Section("Measured", [html.Table(_columns(run), lines)]))
    if line := losses_without_progress(rows):
        sections.append(html.Section("Warning", [html.Text(line)]))
    sections += _curves(rows, {
        "Losses": losses,
        "Collapse meters": ["entropy", "mean_entropy", "max_entropy"],
        "Feature rank": ["effective_rank", "patch_rank"],
        "Share of patches of outlying norm": ["patch_outliers"],
        "On held-out images": list(MEASURES),
    })  # fmt: skip
    if (sheet := run.pictures / "before-and-after.png").is_file():
        sections.append(html.Section("Patch features", [html.Picture(sheet)]))
    sections += _curves(rows, {"Learning rate": ["lr"], "Speed": ["images_per_second"]})
    settings = [(name, str(value)) for name in SETTINGS if (value := run.settings.get(name)) is not None]
    hint = html.Text("All settings are in config.yaml.")
    sections.append(html.Section("Settings", [html.Table(("setting", "value"), settings), hint]))
    return html.write_report(run.path / "report.html", run.path.name, sections)


def _curves(rows: Sequence[Mapping[str, Any]], groups: Mapping[str, Sequence[str]]) -> list[html.Section]:
    """Return a section for each group of metrics that has points."""
    sections = []
    for heading, names in groups.items():
        curves = {name: points for name in names if (points := points_of(rows, name))}
        if curves:
            sections.append(html.Section(heading, [html.Curves(curves)]))
    return sections
