"""The report of a suite of evaluations, as one HTML page and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfpatch.core.atomic_io import write_atomically
from selfpatch.evaluation.result import Result
from selfpatch.visualization.markdown import markdown_page
from selfpatch.visualization.report import MIME, Picture, Section, Table, Text, write_report

MAX_PICTURES = 12
"""Number of pictures of one evaluation that the report shows."""


@dataclass(frozen=True)
class Entry:
    """One evaluation of a suite."""

    number: int
    """Position in the list, from 1."""
    evaluation: str
    data: str
    settings: Mapping[str, Any]
    """All settings of the evaluation, those not given at their defaults."""

    @property
    def folder(self) -> str:
        """Name of the folder of its results."""
        return f"{self.number}-{self.evaluation}"


@dataclass(frozen=True)
class Outcome:
    """State of an entry: a result, an error, or neither if it was not run yet."""

    entry: Entry
    result: Result | None = None
    error: str | None = None
    """Sentence that says why there is no result."""
    was_done: bool = False
    """Whether the result is that of an earlier run of the suite."""


def write_reports(outcomes: Sequence[Outcome], out: Path, title: str) -> None:
    """Write `report.html`, a page that needs no other file, and `report.md`, which links the pictures."""
    rows: list[tuple[str, str, float | None]] = []
    for outcome in outcomes:
        name = outcome.entry.folder
        if outcome.result is None:
            rows.append((name, "failed" if outcome.error else "not run yet", None))
        else:
            rows += [(name, metric, float(value)) for metric, value in outcome.result.metrics.items()]
    summary = Section("Summary", [Table(("evaluation", "metric", "value"), rows)])
    sections = [summary, *(_section(outcome, out) for outcome in outcomes)]
    write_report(out / "report.html", title, sections)
    write_atomically(out / "report.md", markdown_page(title, sections, out))


def _section(outcome: Outcome, out: Path) -> Section:
    entry, result = outcome.entry, outcome.result
    heading = f"{entry.number}. {entry.evaluation} on {entry.data}"
    if result is None:
        return Section(heading, [Text(f"Failed: {outcome.error}" if outcome.error else "Not run yet.")])
    blocks: list[Text | Table | Picture] = []
    if result.rows:
        columns = list(result.rows[0])
        blocks.append(Table(columns, [[row.get(column) for column in columns] for row in result.rows]))
    if result.metrics:
        blocks.append(Table(("metric", "value"), [(name, float(value)) for name, value in result.metrics.items()]))
    weights = result.weights
    origins: dict[str, Mapping[str, Any]] = {
        "Settings": result.settings,
        "Weights": {} if weights is None else {"from": weights.source, "sha256": weights.sha256},
        "Versions": {**result.versions, "device": result.device},
        "Took": {unit: f"{value:.4g}" for unit, value in result.costs.items()},
    }
    blocks += [Text(f"{name}: {', '.join(f'{k} {v}' for k, v in of.items())}") for name, of in origins.items() if of]
    paths = [out / entry.folder / name for name in result.pictures]
    shown = [path for path in paths if path.suffix.lower() in MIME and path.is_file()][:MAX_PICTURES]
    blocks += [Picture(path, path.stem) for path in shown]
    if len(shown) < len(paths):
        blocks.append(Text(f"{len(shown)} of {len(paths)} pictures; all are in {entry.folder}."))
    return Section(heading, blocks)
