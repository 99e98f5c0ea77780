"""The report of a suite: all tables and pictures, as one HTML page and as Markdown."""

from collections.abc import Sequence
from pathlib import Path

from selfpatch.core.atomic_io import write_atomically
from selfpatch.experiments.entries import Outcome, Values
from selfpatch.visualization.markdown import markdown_page
from selfpatch.visualization.report import MIME, Picture, Section, Table, Text, write_report

MAX_PICTURES = 12
"""Number of pictures of one evaluation that the report shows."""


def write_reports(outcomes: Sequence[Outcome], out: Path, title: str) -> None:
    """Write `report.html`, a page that needs no other file, and `report.md`, which links the pictures."""
    rows: list[tuple[str, str, float | None]] = []
    for outcome in outcomes:
        name = outcome.entry.folder
        if outcome.result is None:
            state = "left out" if outcome.was_refused else "failed" if outcome.error else "not run yet"
            rows.append((name, state, None))
        else:
            rows += [(name, metric, float(value)) for metric, value in outcome.result.metrics.items()]
    summary = Section("Summary", [Table(("evaluation", "metric", "value"), rows), *map(Text, _warnings(outcomes))])
    sections = [summary, *(_section(outcome, out) for outcome in outcomes)]
    write_report(out / "report.html", title, sections)
    write_atomically(out / "report.md", markdown_page(title, sections, out))


def _warnings(outcomes: Sequence[Outcome]) -> list[str]:
    """Return sentences on degenerate inputs, with the evaluations that met them."""
    found = [(outcome.entry.folder, outcome.result) for outcome in outcomes]
    return [f"{folder}: {warning}" for folder, result in found if result is not None for warning in result.warnings]


def _section(outcome: Outcome, out: Path) -> Section:
    entry, result = outcome.entry, outcome.result
    heading = f"{entry.number}. {entry.evaluation} on {entry.data}"
    if result is None:
        reason = f"{'Left out' if outcome.was_refused else 'Failed'}: {outcome.error}"
        return Section(heading, [Text(reason if outcome.error else "Not run yet.")])
    blocks: list[Text | Table | Picture] = []
    if result.rows:
        columns = list(result.rows[0])
        blocks.append(Table(columns, [[row.get(column) for column in columns] for row in result.rows]))
    if result.metrics:
        blocks.append(Table(("metric", "value"), [(name, float(value)) for name, value in result.metrics.items()]))
    blocks += map(Text, [*result.notes, *result.warnings])
    weights = result.weights
    origins: dict[str, Values] = {
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
