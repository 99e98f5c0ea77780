"""Files of a scorecard: a page, a radar, tables for papers, and one JSON line for each network."""

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selfpatch.core.atomic_io import write_atomically
from selfpatch.core.text import visible
from selfpatch.evaluation.compare import CONFIDENCE, DRAWS, Interval, Row
from selfpatch.evaluation.headlines import RADAR
from selfpatch.experiments.records import without_nan
from selfpatch.experiments.scorecard import Benchmark, Scorecard
from selfpatch.visualization.markdown import markdown_page
from selfpatch.visualization.radar import MIN_SPOKES, draw_radar
from selfpatch.visualization.report import FormattedNumber, Picture, Section, Table, Text, write_report

TITLE = "Scorecard"
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
ABOUT = (
    f"In percent, except errors (rmse, lower is better). [low, high]: {CONFIDENCE:.0%} bootstrap intervals over the "
    f"images that all networks have, {DRAWS:,} draws; they do not cover the seed of a training. Differences are to the "
    "first network, paired by image. A metric that is no mean over images has no interval; the line below it then "
    "gives the mean over images."
)


def write_scorecard(card: Scorecard, out: Path) -> Path:
    """Write scorecard.html, .md, .tex, .csv, .jsonl and, for three benchmarks or more, .png; return the page's path.

    Raises:
        ValueError: no network has a result with a metric to quote.
        OSError: the disk is full or cannot be written to.
    """
    measured = [benchmark for benchmark in card.benchmarks if benchmark.is_measured]
    if not measured:
        raise ValueError("no result has a metric that a scorecard quotes; give results of evaluations")
    picture = []
    if len(measured) >= MIN_SPOKES:
        spokes = [benchmark.title.replace(", ", "\n") for benchmark in measured]
        columns = zip(*(benchmark.radar_scores for benchmark in measured), strict=True)
        scores, missing = dict(zip(card.names, columns, strict=True)), _names_of_missing(card)
        draw_radar(out / "scorecard.png", spokes, scores, TITLE, f"Left out: {missing}" if missing else "")
        evaluations = {result.name for network in card.networks for result in network.results}
        others = "".join(f"; {name} is shown by {metric}" for name, metric in RADAR.items() if name in evaluations)
        picture = [Picture(out / "scorecard.png", f"Scores of each benchmark{others}")]
    left_out = _left_out_rows(card)
    sections = [
        Section("Scores", [_table(card), Text(ABOUT), *map(Text, card.warnings), *picture]),
        *([Section("Left out", [Table(("network", "benchmark", "reason"), left_out)])] if left_out else []),
        Section("Networks", [_networks(card)]),
    ]
    write_report(out / "scorecard.html", TITLE, sections)
    write_atomically(out / "scorecard.md", markdown_page(TITLE, sections, out))
    write_atomically(out / "scorecard.tex", latex_table(card))
    write_atomically(out / "scorecard.csv", csv_table(card))
    lines = (json.dumps(without_nan(line), allow_nan=False) + "\n" for line in json_lines(card))
    write_atomically(out / "scorecard.jsonl", "".join(lines))
    return out / "scorecard.html"


def _table(card: Scorecard) -> Table:
    rows = []
    for benchmark in card.benchmarks:
        cells = [_cell(benchmark, benchmark.quoted, i, strong=i in benchmark.best) for i in range(len(card.networks))]
        rows.append([benchmark.title, benchmark.metric or None, *cells])
        if benchmark.of_images is not None:
            of_images = benchmark.of_images
            cells = [_cell(benchmark, of_images, i) for i in range(len(card.networks))]
            rows.append(["", f"{of_images.name}, mean of {of_images.num_images}", *cells])
    return Table(("benchmark", "metric", *card.names), rows)


def _cell(benchmark: Benchmark, row: Row, number: int, *, strong: bool = False) -> FormattedNumber | None:
    value, difference = row.values[number], row.differences[number]
    if value is None:
        reason = benchmark.left_out[number]
        return None if reason is None or row is not benchmark.quoted else FormattedNumber(reason.state)
    text = benchmark.printed(value) + _interval(benchmark, row.intervals[number])
    if number and difference is not None:
        text += f";\n{benchmark.printed(difference, '+')}{_interval(benchmark, row.difference_intervals[number], '+')}"
    return FormattedNumber(text, strong)


def _interval(benchmark: Benchmark, interval: Interval | None, sign: str = "") -> str:
    if interval is None:
        return ""
    return f" [{benchmark.printed(interval.low, sign)}, {benchmark.printed(interval.high, sign)}]"


def _left_out_rows(card: Scorecard) -> list[tuple[str, str, str]]:
    """Return network, benchmark and reason of every evaluation that a network's suite left out."""
    return [
        (name, benchmark.title, reason.phrase)
        for i, name in enumerate(card.names)
        for benchmark in card.benchmarks
        if (reason := benchmark.left_out[i]) is not None
    ]


def _names_of_missing(card: Scorecard) -> str:
    """Return the benchmarks that no network has a result of, and why, for one line."""
    missing = [(b.title, next(filter(None, b.left_out)).state) for b in card.benchmarks if not b.is_measured]
    return "; ".join(f"{title} ({state})" for title, state in missing)


def _networks(card: Scorecard) -> Table:
    """Return the table of sources: weights, device, versions and the time of all evaluations."""
    rows = []
    for name, network in zip(card.names, card.networks, strict=True):
        first = network.results[0]
        seconds = sum(result.costs.get("seconds", 0.0) for result in network.results)
        versions = ", ".join(f"{package} {version}" for package, version in first.versions.items())
        rows.append([name, (network.sha256 or "")[:16], str(first.device or ""), versions, f"{seconds:.0f} s"])
    return Table(("network", "sha256", "device", "versions", "evaluations took"), rows)


def latex_table(card: Scorecard) -> str:
    """Return a table for a paper, with booktabs; the best of several networks is bold."""
    lines = [
        "% needs \\usepackage{booktabs}; in percent, except errors",
        rf"\begin{{tabular}}{{ll{'r' * len(card.networks)}}}",
        r"\toprule",
        " & ".join(["Benchmark", "Metric", *map(_latex, card.names)]) + r" \\",
        r"\midrule",
    ]
    for benchmark in card.benchmarks:
        cells = []
        for i, value in enumerate(benchmark.quoted.values):
            reason = benchmark.left_out[i]
            missing = "--" if reason is None else rf"\textit{{{reason.state}}}"
            number = missing if value is None else benchmark.printed(value)
            half = _half_width(benchmark, benchmark.quoted.intervals[i])
            number = rf"\textbf{{{number}}}" if i in benchmark.best else number
            cells.append(number + (rf" {{\scriptsize$\pm${half}}}" if half else ""))
        lines.append(" & ".join([_latex(benchmark.title), _latex(benchmark.metric) or "--", *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _half_width(benchmark: Benchmark, interval: Interval | None) -> str:
    return "" if interval is None else benchmark.printed((interval.high - interval.low) / 2)


def _latex(text: str) -> str:
    """Return the text with everything escaped that LaTeX would read."""
    return re.sub(r"[\\~^&%$#_{}]", lambda found: SPECIAL.get(found[0], f"\\{found[0]}"), visible(text))


def csv_table(card: Scorecard) -> str:
    """Return one line for each number: fractions and errors as they are measured, with their intervals.

    An evaluation that was left out has a line without a number, and the reason in the last column.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    names = ("value", "low", "high", "difference", "difference low", "difference high")
    writer.writerow(("network", "benchmark", "metric", "images", *names, "left out"))
    for i, name in enumerate(card.names):
        for benchmark in card.benchmarks:
            for row in filter(None, (benchmark.quoted, benchmark.of_images)):
                if row.values[i] is not None:
                    numbers = row.values[i], *_ends(row.intervals[i]), row.differences[i] if i else None
                    differences = _ends(row.difference_intervals[i])
                    writer.writerow((name, benchmark.title, row.name, row.num_images, *numbers, *differences, None))
            if (reason := benchmark.left_out[i]) is not None:
                writer.writerow((name, benchmark.title, benchmark.metric, *[None] * (1 + len(names)), reason.phrase))
    return file.getvalue()


def _ends(interval: Interval | None) -> Sequence[float | None]:
    return (None, None) if interval is None else interval


def json_lines(card: Scorecard) -> list[dict[str, Any]]:
    """Return one record for each network: its source, every quoted number with its settings, and what is left out."""
    lines = []
    for i, network in enumerate(card.networks):
        scores = []
        for benchmark in card.benchmarks:
            result = benchmark.results[i]
            if result is not None:
                interval = benchmark.quoted.intervals[i]
                scores.append({
                    "benchmark": benchmark.title, "evaluation": result.name, "metric": benchmark.metric,
                    "value": benchmark.quoted.values[i], "interval": None if interval is None else list(interval),
                    "higher_is_better": benchmark.higher_is_better, "metrics": dict(result.metrics),
                    "settings": dict(result.settings), "warnings": list(result.warnings),
                })  # fmt: skip
        first = network.results[0]
        lines.append({
            "network": card.names[i], "sha256": network.sha256, "device": first.device,
            "versions": dict(first.versions), "scores": scores,
            "left_out": [
                {"benchmark": benchmark.title, "evaluation": reason.evaluation, "reason": reason.phrase,
                 "settings": dict(reason.settings)}
                for benchmark in card.benchmarks if (reason := benchmark.left_out[i]) is not None
            ],
        })  # fmt: skip
    return lines
