"""The report of a run: a table for the terminal and a page to keep."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.schema import flat
from selfpatch.core.console import plain_table
from selfpatch.core.text import counted
from selfpatch.data.images import evenly_spread
from selfpatch.training.collapse import UNIFORM, describe_uniform, losses_at_uniform
from selfpatch.training.history import read_history
from selfpatch.training.loggers.metrics import read_numbers
from selfpatch.visualization import report as html
from selfpatch.visualization.curves import points_of

_KNN = "k-NN: share of training images whose nearest neighbours name their class."
MEASURES = {
    "view_matching": "view matching",
    "knn_top1": "k-NN top-1, leave one out",
    "patch_knn_top1": "k-NN top-1 of the mean patch",
}
"""Metrics of `online_eval.OnlineEvaluator` in words."""
ABOUT = {
    "view_matching": "View matching: share of patches found again in another view of held-out images.",
    "knn_top1": _KNN,
    "patch_knn_top1": _KNN,
}
"""Definitions of the metrics, one sentence each."""
SETTINGS = ("data", "recipe", "method", "objective", "model", "patch_size", "init", "epochs", "batch_size", "seed")
"""Settings that the page shows at first sight."""
MAX_SHEETS = 5
"""Largest number of sheets of evaluations during the run on the page."""


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


def _last_losses(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    return next((row for row in reversed(rows) if row.get("loss") is not None), {})


def losses_without_progress(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return one line about losses that end at the value of uniform predictions, or None if there are none."""
    found = losses_at_uniform(_last_losses(rows))
    return f"no better than uniform predictions at the end: {describe_uniform(found)}" if found else None


def _columns(run: RunDirectory) -> tuple[str, ...]:
    return "", "mean patch colour", "untrained" if run.settings.get("init") is None else "initial weights", "trained"


def measured_table(run: RunDirectory) -> Table | None:
    """Return `measured` for the terminal, or None if nothing was measured."""
    lines = measured(read_numbers(run.path))
    table = plain_table(title="Features before and after training, in percent", caption=_about(lines))
    for column in _columns(run):
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    for line in lines:
        table.add_row(*line)
    return table if table.rows else None


def _about(lines: Sequence[tuple[str, ...]]) -> str:
    """Return the sentences that explain the metrics of these lines."""
    words = {line[0] for line in lines}
    return "\n".join(dict.fromkeys(text for name, text in ABOUT.items() if MEASURES[name] in words))


def write_run_report(run: RunDirectory, losses: Sequence[str]) -> Path:
    """Write `report.html`: metrics, curves with their baselines, sheets of patch features, history and settings.

    `losses` names the losses in the metrics.
    """
    rows = read_numbers(run.path)
    sections = []
    if lines := measured(rows):
        about = html.Text(f"In percent. {_about(lines)}")
        sections.append(html.Section("Measured", [html.Table(_columns(run), lines), about]))
    if line := losses_without_progress(rows):
        sections.append(html.Section("Warning", [html.Text(line)]))
    sections += _curves(rows, losses)
    sections += _sheets(run)
    sections += _history(run)
    settings = [(name, str(value)) for name in SETTINGS if (value := run.settings.get(name)) is not None]
    every = [(name, str(value)) for name, value in flat(run.settings).items()]
    tables = [html.Table(("setting", "value"), settings), html.Table(("setting", "value"), every, "All settings")]
    sections.append(html.Section("Settings", tables))
    return html.write_report(run.path / "report.html", run.path.name, sections)


def _curves(rows: Sequence[Mapping[str, Any]], losses: Sequence[str]) -> list[html.Section]:
    """Return a section for each group of metrics that has points, with the values to compare them with."""
    last, first = _last_losses(rows), next((row for row in rows if row["step"] == 0), {})
    uniform = {f"{name}, uniform predictions": last.get(UNIFORM + name) for name in losses}
    colours = {f"{MEASURES[name]}, mean patch colour": first.get(f"{name}_mean_colour") for name in MEASURES}
    groups: list[tuple[str, Sequence[str], str, Mapping[str, float | None]]] = [
        ("Losses", losses, "loss", uniform),
        ("Collapse meters", ("entropy", "mean_entropy", "max_entropy"), "entropy, nats", {}),
        ("Feature rank", ("effective_rank", "patch_rank"), "effective rank, dimensions", {}),
        ("Share of patches of outlying norm", ("patch_outliers",), "fraction of patches", {}),
        ("On held-out images", tuple(MEASURES), "fraction", colours),
        ("Learning rate", ("lr",), "learning rate", {}),
        ("Speed", ("images_per_second",), "images per second", {}),
    ]
    sections = []
    for heading, names, unit, values in groups:
        curves = {MEASURES.get(name, name): points for name in names if (points := points_of(rows, name))}
        baselines = {name: value for name, value in values.items() if value is not None}
        if curves:
            sections.append(html.Section(heading, [html.Curves(curves, y_label=unit, baselines=baselines)]))
    return sections


def _sheets(run: RunDirectory) -> list[html.Section]:
    """Return the sheet of before and after, and sheets of some evaluations between, evenly spread over the run."""
    sections = []
    if (sheet := run.pictures / "before-and-after.png").is_file():
        blocks: list[html.Block] = [html.Picture(sheet)]
        if run.explorer.is_file():
            blocks.append(html.Link("Compare patches before and after training", run.explorer.name))
        sections.append(html.Section("Patch features", blocks))
    sheets = sorted(run.pictures.glob("step-*.png"))
    if len(sheets) > 1:
        chosen = [sheets[i] for i in evenly_spread(np.arange(len(sheets)), MAX_SHEETS)]
        sections.append(html.Section("Patch features over time", [html.Picture(sheet) for sheet in chosen]))
    return sections


def _history(run: RunDirectory) -> list[html.Section]:
    """Return the commands, times, machines and versions of a run's sessions."""
    history = read_history(run.path)
    if not history:
        return []
    times = [(_minute(s["started"]), _minute(s["ended"] or "–"), s["command"]) for s in history]
    software = [", ".join(f"{name} {version}" for name, version in s["versions"].items()) for s in history]
    machines = [f"{s['device']}, {counted(s['processes'], 'process')}" for s in history]
    blocks: list[html.Block] = [
        html.Table(("started", "ended", "command"), times),
        *(html.Text(f"Run with {text}.") for text in dict.fromkeys(software)),
        *(html.Text(f"Trained on {text}.") for text in dict.fromkeys(machines)),
    ]
    return [html.Section("History", blocks)]


def _minute(time: str) -> str:
    """Return `2026-11-29 12:33` of a time in ISO 8601."""
    return time[:16].replace("T", " ")
