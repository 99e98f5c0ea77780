"""What came of a suite of evaluations, as one page and as one text."""

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
"""Of an evaluation that the report shows."""


@dataclass(frozen=True)
class Entry:
    """One evaluation of a suite.

    Attributes:
        number: its place in the list, from 1.
        settings: all that its options have, those not given at their defaults.
    """

    number: int
    evaluation: str
    data: str
    settings: Mapping[str, Any]

    @property
    def folder(self) -> str:
        return f"{self.number}-{self.evaluation}"


@dataclass(frozen=True)
class Outcome:
    """What came of an entry: a result, or the sentence that says why there is none; neither: it is yet to be run."""

    entry: Entry
    result: Result | None = None
    error: str | None = None
    was_done: bool = False
    """It had been done before, and was not run again."""


def write_reports(outcomes: Sequence[Outcome], out: Path, title: str) -> None:
    """`report.html`, a page that needs no other file, and `report.md`, which shows the pictures where they lie."""
    sections = [Section("Summary", [_summary(outcomes)]), *(_section(outcome, out) for outcome in outcomes)]
    write_report(out / "report.html", title, sections)
    write_atomically(out / "report.md", markdown_page(title, sections, out))


def _summary(outcomes: Sequence[Outcome]) -> Table:
    """Every number that is to be quoted."""
    rows: list[tuple[str, str, float | None]] = []
    for outcome in outcomes:
        name = outcome.entry.folder
        if outcome.result is None:
            rows.append((name, "failed" if outcome.error else "not run yet", None))
        else:
            rows += [(name, metric, float(value)) for metric, value in outcome.result.metrics.items()]
    return Table(("evaluation", "metric", "value"), rows)


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
    blocks += [Text(line) for line in _origins(result)]
    paths = [out / entry.folder / name for name in result.pictures]
    shown = [path for path in paths if path.suffix.lower() in MIME and path.is_file()][:MAX_PICTURES]
    blocks += [Picture(path, path.stem) for path in shown]
    if len(shown) < len(paths):
        blocks.append(Text(f"{len(shown)} of {len(paths)} pictures; all are in {entry.folder}."))
    return Section(heading, blocks)


def _origins(result: Result) -> list[str]:
    """What the numbers come from, a line a kind."""
    weights = result.weights
    kinds: dict[str, Mapping[str, Any]] = {
        "Settings": result.settings,
        "Weights": {} if weights is None else {"from": weights.source, "sha256": weights.sha256},
        "Versions": {**result.versions, "device": result.device},
        "Took": {unit: f"{value:.4g}" for unit, value in result.costs.items()},
    }
    return [f"{kind}: {', '.join(f'{k} {v}' for k, v in values.items())}" for kind, values in kinds.items() if values]
