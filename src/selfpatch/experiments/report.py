"""The report of a study: its tables and curves as one Markdown file with figures, and as one HTML page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from string import ascii_lowercase

from selfpatch.core.atomic_io import write_atomically
from selfpatch.experiments.results import Row, StudyResults, paired
from selfpatch.visualization import report as html
from selfpatch.visualization.curves import curves_svg, finite
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
    drawn = {heading: curves for heading in results.curves if any((curves := _curves(results, heading)).values())}
    linked: dict[str, html.Block] = {}
    for heading, name in zip(drawn, _file_names(drawn), strict=True):
        path = out / "figures" / f"{name}.svg"
        write_atomically(path, curves_svg(drawn[heading], title=heading))
        linked[heading] = Picture(path, heading)
    write_atomically(out / "report.md", markdown_page(results.title, _sections(results, linked), out))
    inside: dict[str, html.Block] = {heading: html.Curves(curves) for heading, curves in drawn.items()}
    html.write_report(out / "report.html", results.title, _sections(results, inside))
    return out / "report.md"


def _curves(results: StudyResults, heading: str) -> dict[str, list[tuple[float, float]]]:
    """Return the points of every arm in the order of the arms, so that an arm has one colour in all figures."""
    given = results.curves[heading]
    names = dict.fromkeys([*(arm.name for arm in results.arms), *given])
    return {name: finite(given.get(name, ())) for name in names}


def _file_names(headings: Iterable[str]) -> list[str]:
    """Return a distinct file name for each heading: `patches matched, %` is patches-matched."""
    names: list[str] = []
    for heading in headings:
        stem = re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")[:60] or "figure"
        name, copy = stem, 2
        while name in names:
            name, copy = f"{stem}-{copy}", copy + 1
        names.append(name)
    return names


def _sections(results: StudyResults, figures: Mapping[str, html.Block]) -> list[Section]:
    sections = [Section("Question", [Text(results.question), *_progress(results)])]
    sections.append(Section("Results", [_results(results), *map(Text, _notes(results))]))
    reference = results.compared_with
    if reference is not None and len(results.arms) > 1:
        sections.append(_differences(results, reference))
    if results.failures:
        sections.append(Section("Failures", [Text(sentence) for sentence in results.failures]))
    sections += [Section(heading, [figure]) for heading, figure in figures.items()]
    sheets = [path for path in results.sheets if path.suffix.lower() in html.MIME and path.is_file()]
    if sheets:
        sections.append(Section("Patch features", [Picture(path, path.stem) for path in sheets]))
    if results.conditions:
        sections.append(Section("Conditions", [Table(("condition", "value"), list(results.conditions.items()))]))
    return sections


def _progress(results: StudyResults) -> list[Text]:
    """Return what is missing or failed, which stands first because it qualifies the tables below."""
    sentences = []
    if n := results.num_unfinished:
        sentences.append(f"Not finished: {n} {'job is' if n == 1 else 'jobs are'} yet to be run.")
    if n := len(results.failures):
        sentences.append(f"{n} {'failure' if n == 1 else 'failures'}: see below.")
    return [Text(" ".join(sentences))] if sentences else []


def _results(results: StudyResults) -> Table:
    """Return the table of baselines and arms."""
    rows = [
        [f"{baseline.name} (baseline {letter})", *(_mean(baseline, c) for c in results.columns), *_costs(baseline)]
        for letter, baseline in zip(ascii_lowercase, results.baselines, strict=False)
    ]
    rows += [[arm.name, *(_score(results, arm, c) for c in results.columns), *_costs(arm)] for arm in results.arms]
    return Table(("", *results.columns, "steps", "minutes"), rows)


def _mean(baseline: Row, column: str) -> FormattedNumber | None:
    score = baseline.score(column)
    return None if score is None else FormattedNumber(str(score))


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
    scores = [_score(results, arm, column) for arm in results.arms for column in results.columns]
    cells = [score for score in scores if score is not None]
    note = _unit(results.seeds)
    if any("(n=" in cell.text for cell in cells):
        note += " n: number of seeds, where it is smaller."
    if any(cell.strong for cell in cells):
        note += " Bold: the best arm of a column."
    marked = {letter for cell in cells for letter in cell.mark.removeprefix(MARK)}
    lettered = zip(ascii_lowercase, results.baselines, strict=False)
    names = [f"{letter}, {baseline.name}" for letter, baseline in lettered if letter in marked]
    return [note, f"{MARK} The arm does not beat a baseline: {'; '.join(names)}."] if names else [note]


def _unit(seeds: Sequence[int]) -> str:
    if len(seeds) > 1:
        return f"In percent: mean ± sample standard deviation over the seeds {', '.join(map(str, seeds))}."
    return f"In percent, of one seed ({seeds[0]}): how far seeds differ is not known." if seeds else "In percent."


def _differences(results: StudyResults, reference: Row) -> Section:
    """Return the differences of every other arm to the reference, seed by seed."""
    rows: list[list[str | FormattedNumber | None]] = []
    for arm in results.arms:
        if arm is not reference:
            differences = [paired(arm, reference, column) for column in results.columns]
            rows.append([arm.name, *(None if d is None else FormattedNumber(str(d)) for d in differences)])
    table = Table(("", *results.columns), rows)
    return Section(f"Difference to {reference.name}", [table, Text(ABOUT_DIFFERENCES)])
