"""The report of a study: its tables and curves as one Markdown file with figures, and as one HTML page."""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from string import ascii_lowercase

from selfpatch.core.atomic_io import write_atomically
from selfpatch.core.text import counted
from selfpatch.experiments.results import Row, Spread, StudyResults, paired
from selfpatch.visualization import report as html
from selfpatch.visualization.curves import Point, curves_svg, finite
from selfpatch.visualization.markdown import markdown_page
from selfpatch.visualization.report import FormattedNumber, Picture, Section, Table, Text

MARK = "†"
"""Sign before the letters of the baselines that an arm does not beat."""
ABOUT_DIFFERENCES = (
    "In percentage points: mean ± sample standard deviation of the paired differences over the seeds that both arms "
    "have, and the number of seeds in which the arm is ahead. This is no test of significance."
)


def write_study_report(results: StudyResults, out: Path) -> Path:
    """Write `report.md` with its curves in `figures/`, and `report.html`, a page that needs no other file.

    Earlier reports are overwritten. Sheets are copied into the page and linked from the Markdown.

    Returns:
        The path of `report.md`.

    Raises:
        OSError: the disk is full or cannot be written to.
    """
    # Every figure gets all arms, so that an arm keeps its colour.
    arms = [arm.name for arm in results.arms]
    drawn = {}
    for heading, given in results.curves.items():
        curves = {name: finite(given.get(name, ())) for name in dict.fromkeys([*arms, *given])}
        if any(curves.values()):
            drawn[heading] = curves
    linked: dict[str, html.Block] = {}
    for heading, name in zip(drawn, _file_names(drawn), strict=True):
        path = out / "figures" / f"{name}.svg"
        write_atomically(path, curves_svg(drawn[heading], title=heading))
        linked[heading] = Picture(path, heading)
    write_atomically(out / "report.md", markdown_page(results.title, _sections(results, linked), out))
    inside: dict[str, html.Block] = {heading: html.Curves(curves) for heading, curves in drawn.items()}
    html.write_report(out / "report.html", results.title, _sections(results, inside))
    return out / "report.md"


def _file_names(headings: Iterable[str]) -> list[str]:
    """Return a distinct file name for each heading: `patches matched, %` is patches-matched."""
    names: list[str] = []
    for heading in headings:
        stem = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")[:60] or "figure"
        candidates = (stem if copy == 1 else f"{stem}-{copy}" for copy in itertools.count(1))
        names.append(next(name for name in candidates if name not in names))
    return names


def _sections(results: StudyResults, figures: Mapping[str, html.Block]) -> list[Section]:
    # What is missing or failed stands first because it qualifies the tables below.
    progress = []
    if n := results.num_unfinished:
        progress.append(f"Not finished: {counted(n, 'job')} yet to be run.")
    if n := len(results.failures):
        progress.append(f"{counted(n, 'failure')}: see below.")
    if n := len(results.warnings):
        progress.append(f"{counted(n, 'warning')} on degenerate inputs: see below.")
    question = [results.question, " ".join(progress)] if progress else [results.question]
    sections = [
        Section("Question", [Text(sentence) for sentence in question]),
        Section("Results", [_results(results), *map(Text, _notes(results))]),
    ]
    reference = results.compared_with
    if reference is not None and any(arm is not reference for arm in results.arms):
        sections.append(_differences(results, reference))
    if any(results.curves.values()):
        sections.append(_first_and_last(results))
    if results.failures:
        sections.append(Section("Failures", [Text(sentence) for sentence in results.failures]))
    if results.warnings:
        sections.append(Section("Degenerate inputs", [Text(sentence) for sentence in results.warnings]))
    sections += [Section(heading, [figure]) for heading, figure in figures.items()]
    sheets = [path for path in results.sheets if path.suffix.lower() in html.MIME and path.is_file()]
    if sheets:
        sections.append(Section("Patch features", [Picture(path, path.stem) for path in sheets]))
    if results.conditions:
        sections.append(Section("Conditions", [Table(("condition", "value"), list(results.conditions.items()))]))
    return sections


def _results(results: StudyResults) -> Table:
    """Return the table of baselines and arms."""
    rows = []
    for letter, baseline in zip(ascii_lowercase, results.baselines, strict=False):
        means = [_number(baseline.score(column)) for column in results.columns]
        rows.append([f"{baseline.name} (baseline {letter})", *means, *_costs(baseline)])
    rows += [[arm.name, *(_score(results, arm, c) for c in results.columns), *_costs(arm)] for arm in results.arms]
    return Table(("", *results.columns, "steps", "minutes"), rows)


def _number(value: Spread | None) -> FormattedNumber | None:
    return None if value is None else FormattedNumber(str(value))


def _score(results: StudyResults, arm: Row, column: str) -> FormattedNumber | None:
    """Return the score of an arm, bold if it is the best, marked with the baselines that it does not beat."""
    score = arm.score(column)
    if score is None:
        return None
    fewer = f" (n={score.count})" if score.count < len(results.seeds) else ""
    letters = "".join(ascii_lowercase[index] for index in results.not_beaten(arm, column))
    return FormattedNumber(f"{score}{fewer}", arm.name in results.best(column), MARK + letters if letters else "")


def _costs(row: Row) -> tuple[FormattedNumber | None, FormattedNumber | None]:
    """Return the number of steps and the mean minutes of training."""
    steps = None if row.steps is None else FormattedNumber(f"{row.steps:,}")
    if not row.minutes:
        return steps, None
    minutes = fmean(row.minutes.values())
    return steps, FormattedNumber(f"{minutes:.1f}" if minutes < 10 else f"{minutes:,.0f}")


def _notes(results: StudyResults) -> list[str]:
    """Return how the table is to be read: what its numbers are, what is bold, what the marks mean."""
    cells = [cell for arm in results.arms for c in results.columns if (cell := _score(results, arm, c)) is not None]
    seeds = results.seeds
    note = "In percent."
    if len(seeds) == 1:
        note = f"In percent, of one seed ({seeds[0]}): how far seeds differ is not known."
    elif seeds:
        note = f"In percent: mean ± sample standard deviation over the seeds {', '.join(map(str, seeds))}."
    if any("(n=" in cell.text for cell in cells):
        note += " n: number of seeds, where it is smaller."
    if any(cell.strong for cell in cells):
        note += " Bold: the best arm of a column."
    marked = {letter for cell in cells for letter in cell.mark.removeprefix(MARK)}
    lettered = zip(ascii_lowercase, results.baselines, strict=False)
    names = [f"{letter}, {baseline.name}" for letter, baseline in lettered if letter in marked]
    return [note, f"{MARK} The arm does not beat a baseline: {'; '.join(names)}."] if names else [note]


def _differences(results: StudyResults, reference: Row) -> Section:
    """Return the differences of every other arm to the reference, seed by seed."""
    others = [arm for arm in results.arms if arm is not reference]
    rows = [[arm.name, *(_number(paired(arm, reference, c)) for c in results.columns)] for arm in others]
    return Section(f"Difference to {reference.name}", [Table(("", *results.columns), rows), Text(ABOUT_DIFFERENCES)])


def _first_and_last(results: StudyResults) -> Section:
    """Return the ends of every curve: the network before its training, and at its end."""
    curves = {heading: {n: finite(points) for n, points in lines.items()} for heading, lines in results.curves.items()}
    headings = [heading for heading, lines in curves.items() if any(lines.values())]
    names = dict.fromkeys(name for heading in headings for name, points in curves[heading].items() if points)
    rows = [[name, *(_ends(curves[heading].get(name, ())) for heading in headings)] for name in names]
    return Section("First and last values", [Table(("", *headings), rows)])


def _ends(points: Sequence[Point]) -> FormattedNumber | None:
    if not points:
        return None
    (_, first), (_, last) = points[0], points[-1]
    return FormattedNumber(f"{first:.3g}" if len(points) == 1 else f"{first:.3g} to {last:.3g}")
