"""The report of a study: its tables and curves as one Markdown file with figures beside it, and as one HTML page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from string import ascii_lowercase

from selfpatch.core.atomic_io import write_atomically
from selfpatch.experiments.results import Findings, Row, paired
from selfpatch.visualization.curves import curves_svg, finite
from selfpatch.visualization.markdown import markdown_page
from selfpatch.visualization.report import (
    MIME,
    Block,
    Curves,
    FormattedNumber,
    Picture,
    Section,
    Table,
    Text,
    write_report,
)

MARK = "†"
"""Before the letters of the floors that an arm does not beat."""
OF_DIFFERENCES = (
    "In percentage points: mean ± sample standard deviation of the paired differences, over the seeds that both have, "
    "and in how many of these the arm is ahead. Nothing is said of significance."
)


def write_study_report(findings: Findings, out: Path) -> Path:
    """Writes `report.md` with its curves in `figures/`, and `report.html`, a page that needs no other file.

    What an earlier call wrote is overwritten. Sheets are copied into the page, and linked from the Markdown.

    Returns:
        The path of `report.md`.

    Raises:
        OSError: the disk is full or cannot be written to.
    """
    figures = _write_figures(findings, out)
    linked: dict[str, Block] = {heading: Picture(path, heading) for heading, path in figures.items()}
    text = markdown_page(findings.title, _sections(findings, linked), out)
    write_atomically(out / "report.md", text)
    inside: dict[str, Block] = {heading: _curves(findings, heading) for heading in figures}
    write_report(out / "report.html", findings.title, _sections(findings, inside))
    return out / "report.md"


def _write_figures(findings: Findings, out: Path) -> dict[str, Path]:
    """Heading -> its file; none where a heading has no point yet."""
    drawn = {heading: _curves(findings, heading).curves for heading in findings.curves}
    headings = [heading for heading, curves in drawn.items() if any(curves.values())]
    paths = {heading: out / "figures" / f"{name}.svg" for heading, name in zip(headings, _names(headings), strict=True)}
    for heading, path in paths.items():
        write_atomically(path, curves_svg(drawn[heading], title=heading))
    return paths


def _curves(findings: Findings, heading: str) -> Curves:
    """In the order of the arms, so that an arm has its colour in every figure, whichever others have points there.

    The page names a single one below it, as it has no legend.
    """
    given = findings.curves[heading]
    ordered = dict.fromkeys([*(arm.name for arm in findings.arms), *given])
    curves = {name: finite(given.get(name, ())) for name in ordered}
    drawn = [name for name, points in curves.items() if points]
    return Curves(curves, caption=drawn[0] if len(drawn) == 1 else "")


def _names(headings: Iterable[str]) -> list[str]:
    """A file name for each heading, each its own: `patches matched, %` is patches-matched."""
    names: list[str] = []
    for heading in headings:
        plain = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")[:60] or "figure"
        name, copy = plain, 2
        while name in names:
            name, copy = f"{plain}-{copy}", copy + 1
        names.append(name)
    return names


def _sections(findings: Findings, figures: Mapping[str, Block]) -> list[Section]:
    sections = [Section("Question", [Text(findings.question), *_progress(findings)])]
    sections.append(Section("Results", [_results(findings), *map(Text, _notes(findings))]))
    reference = findings.compared_with
    if reference is not None and len(findings.arms) > 1:
        sections.append(_differences(findings, reference))
    if findings.failures:
        sections.append(Section("NonFiniteCounter", [Text(sentence) for sentence in findings.failures]))
    sections += [Section(heading, [figure]) for heading, figure in figures.items()]
    sheets = [path for path in findings.sheets if path.suffix.lower() in MIME and path.is_file()]
    if sheets:
        sections.append(Section("Patch features", [Picture(path, path.stem) for path in sheets]))
    if findings.conditions:
        sections.append(Section("Conditions", [Table(("condition", "value"), list(findings.conditions.items()))]))
    return sections


def _progress(findings: Findings) -> list[Text]:
    """Said first, since the tables below are to be read in its light."""
    said = []
    if n := findings.unfinished:
        said.append(
            f"Not finished: {n} {'job is' if n == 1 else 'jobs are'} yet to be run; this is what there is so far."
        )
    if n := len(findings.failures):
        said.append(f"{n} {'failure' if n == 1 else 'failures'}: see below.")
    return [Text(" ".join(said))] if said else []


def _results(findings: Findings) -> Table:
    """Floors, then arms."""
    letters = ascii_lowercase[: len(findings.floors)]
    rows = [
        [f"{floor.name} (floor {letter})", *(_floor_score(floor, c) for c in findings.columns), *_costs(floor)]
        for letter, floor in zip(letters, findings.floors, strict=True)
    ]
    rows += [
        [arm.name, *(_arm_score(findings, arm, c) for c in findings.columns), *_costs(arm)] for arm in findings.arms
    ]
    return Table(("", *findings.columns, "steps", "minutes"), rows)


def _floor_score(floor: Row, column: str) -> FormattedNumber | None:
    score = floor.score(column)
    return None if score is None else FormattedNumber(str(score))


def _arm_score(findings: Findings, arm: Row, column: str) -> FormattedNumber | None:
    score = arm.score(column)
    if score is None:
        return None
    fewer = f" (n={score.count})" if score.count < len(findings.seeds) else ""
    letters = "".join(ascii_lowercase[place] for place in findings.not_beaten(arm, column))
    return FormattedNumber(f"{score}{fewer}", arm.name in findings.best(column), MARK + letters if letters else "")


def _costs(row: Row) -> tuple[FormattedNumber | None, FormattedNumber | None]:
    """Steps, and minutes of training in the mean."""
    steps = None if row.steps is None else FormattedNumber(f"{row.steps:,}")
    return steps, FormattedNumber(_minutes(fmean(row.minutes.values()))) if row.minutes else None


def _minutes(minutes: float) -> str:
    return f"{minutes:.1f}" if minutes < 10 else f"{minutes:,.0f}"


def _notes(findings: Findings) -> list[str]:
    """How the table is to be read: what its numbers are, what is bold, what the marks mean."""
    scores = [_arm_score(findings, arm, column) for arm in findings.arms for column in findings.columns]
    cells = [score for score in scores if score is not None]
    meaning = _meaning(findings.seeds)
    if any("(n=" in cell.text for cell in cells):
        meaning += " n: over fewer of them, as many as it says."
    if any(cell.strong for cell in cells):
        meaning += " Bold: the best arm of a column."
    marked = {letter for cell in cells for letter in cell.mark.removeprefix(MARK)}
    names = [
        f"{letter}, {floor.name}"
        for letter, floor in zip(ascii_lowercase, findings.floors, strict=False)
        if letter in marked
    ]
    return [meaning, f"{MARK} The arm does not beat a floor: {'; '.join(names)}."] if names else [meaning]


def _meaning(seeds: Sequence[int]) -> str:
    if len(seeds) > 1:
        return f"In percent: mean ± sample standard deviation over the seeds {', '.join(map(str, seeds))}."
    return f"In percent, of one seed ({seeds[0]}): how far seeds differ is not known." if seeds else "In percent."


def _differences(findings: Findings, reference: Row) -> Section:
    """Of every other arm to the reference, seed by seed."""
    rows: list[list[str | FormattedNumber | None]] = []
    for arm in findings.arms:
        if arm is not reference:
            differences = [paired(arm, reference, column) for column in findings.columns]
            rows.append([arm.name, *(None if d is None else FormattedNumber(str(d)) for d in differences)])
    return Section(f"Difference to {reference.name}", [Table(("", *findings.columns), rows), Text(OF_DIFFERENCES)])
