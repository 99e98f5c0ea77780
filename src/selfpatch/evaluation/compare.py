"""Comparison of results, with confidence intervals of their differences.

The intervals are percentile bootstrap intervals (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
chapter 13) over images, with the same images drawn for all results (paired).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table

from selfpatch.config.schema import plain
from selfpatch.core.console import Report, literal, plain_table
from selfpatch.core.text import format_number, visible
from selfpatch.evaluation.registry import EVALUATIONS, complete_settings
from selfpatch.evaluation.result import Progress, Result, silent

MAX_PATCH = 32
"""`segment` rounds the crop of a linear layer down to a multiple of the patch size; smaller differences are ignored."""
CONFIDENCE = 0.95
DRAWS = 10_000
MAX_DRAWN = 2**18
"""Images that are drawn at once: 2 MB of numbers."""


class Interval(NamedTuple):
    """Confidence interval."""

    low: float
    high: float


class Row(NamedTuple):
    """One metric of every result; the lists hold None where a result has no such number."""

    name: str
    num_images: int | None
    """Number of images that the values are means over; None for a metric as the results quote it."""
    values: Sequence[float | None]
    differences: Sequence[float | None]
    """Values minus the first result's."""
    intervals: Sequence[Interval | None]
    difference_intervals: Sequence[Interval | None]

    @property
    def title(self) -> str:
        """Name for the table."""
        return self.name if self.num_images is None else f"{self.name}, mean of {self.num_images}"

    def cell(self, column: int) -> str:
        """Return the numbers of one result for the table, intervals below them."""
        lines = []
        for value, interval, form in (
            (self.values[column], self.intervals[column], ".4f"),
            (self.differences[column] if column else None, self.difference_intervals[column], "+.4f"),
        ):
            if value is not None:
                lines.append(format_number(value, form))
            if interval is not None:
                lines.append(f"[{format_number(interval.low, form)}, {format_number(interval.high, form)}]")
        return "\n".join(lines) or "\N{EN DASH}"


@dataclass(frozen=True, repr=False)
class Comparison(Report):
    """Metrics of several results, with differences to the first; `print` shows its table."""

    columns: Sequence[str]
    """Name of each result."""
    rows: Sequence[Row]
    """The quoted metrics, then the means over images."""
    differing: Sequence[str] = ()
    """Sentences on settings that decide the numbers and differ; empty unless that was allowed."""
    network_differences: Sequence[str] = ()
    """Sentences on settings that differ because the networks do, see `EvaluationConfig.network_settings`."""
    warnings: Sequence[str] = ()
    """Sentences on degenerate inputs of the results."""

    def __rich__(self) -> Table:
        return self.table()

    def table(self) -> Table:
        """Return a table for the terminal: a row for each metric, a column for each result, intervals below numbers."""
        caption = [f"[low, high]: {CONFIDENCE:.0%} bootstrap intervals over the images that all results have"]
        caption += [*self.differing, *self.network_differences, *self.warnings]
        table = plain_table(title="comparison", caption=literal("\n".join(map(visible, caption)), "table.caption"))
        table.add_column("metric", overflow="fold")
        for column in self.columns:
            table.add_column(literal(column), justify="right", overflow="fold")
        for row in self.rows:
            table.add_row(literal(row.title), *[literal(row.cell(i)) for i in range(len(self.columns))])
        return table


def compare(
    results: Sequence[Result | str | Path],
    *,
    allow_different: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
    progress: Progress = silent,
) -> Comparison:
    """Compare results of one evaluation.

    ::

        for each quoted metric: the values of the results, and their differences to the first one
        for each metric that the images of all results have:
            images = those with a finite value in every result
            mean   = mean of a result over these images
            repeat `draws` times: draw as many images with replacement, the same ones for all results
                                  -> the mean of each result, and its difference to the first one's
            interval = the 2.5th to the 97.5th percentile of these means, and of these differences

    A difference whose interval excludes 0 is larger than another sample of such images would often produce. The
    intervals do not cover the random seed of a training. Means over images have separate rows, because a quoted metric
    may not be such a mean: DAVIS quotes means over objects and draws sequences, and mIoU is not a mean over images. If
    both agree for every result, the quoted row has the intervals.

    Args:
        results: two or more results, or the paths of their files or folders.
        allow_different: compare results of different settings, data or evaluations too.
        draws: number of bootstrap draws.
        seed: random seed of the draws; the intervals do not depend on the order of images.
        progress: called with a description, the number of draws done and the total.

    Raises:
        ValueError: there are fewer than two results, one cannot be read, or evaluation, data or settings differ.
    """
    if len(results) < 2:
        raise ValueError(f"a comparison needs two or more results; {len(results)} named")
    if draws < 1:
        raise ValueError(f"draws is {draws}; use 1 or more, e.g. {DRAWS}")
    loaded = [result if isinstance(result, Result) else Result.load(result) for result in results]
    differing, network_differences = _differences(loaded)
    if differing and not allow_different:
        raise ValueError(f"the results cannot be compared: {differing[0]}; allow it with --allow-different")
    rows = rows_of(loaded, draws, seed, progress)
    columns = _columns(results, loaded)
    named = zip(columns, loaded, strict=True)
    warnings = [f"{column}: {warning}" for column, result in named for warning in result.warnings]
    return Comparison(columns, rows, differing, network_differences, warnings)


def rows_of(results: Sequence[Result], draws: int = DRAWS, seed: int = 0, progress: Progress = silent) -> list[Row]:
    """Return the quoted metrics of one or more results, then the means over images, as `compare` explains them."""
    means = {row.name: row for row in _mean_rows(results, draws, seed, progress)}
    rows = []
    for name in dict.fromkeys(name for result in results for name in result.metrics):
        quoted = _quoted_row(name, [result.metrics.get(name) for result in results])
        rows.append(means.pop(name) if name in means and _equal(quoted, means[name]) else quoted)
    return [*rows, *means.values()]


def are_comparable(a: Result, b: Result) -> bool:
    """Return whether two results are of one evaluation, with the same settings and a data set of the same name."""
    return not _differences([_with_name_of_data(a), _with_name_of_data(b)])[0]


def _with_name_of_data(result: Result) -> Result:
    return replace(result, settings={**result.settings, "data": Path(str(result.settings.get("data"))).name})


def paired_bootstrap(
    values: np.ndarray, *, draws: int = DRAWS, seed: int = 0, on_draw: Callable[[int], None] = lambda done: None
) -> tuple[np.ndarray, np.ndarray]:
    """Return intervals of means and of their differences to the first one.

    `values` are [n, R] of n >= 2 images and R results. Each of the `draws` takes n images with replacement, the same
    ones for every result. Both intervals are [R, 2], low and high end. `on_draw` is called with the number of draws
    done, now and then.
    """
    rng = np.random.default_rng(seed)
    n, means = len(values), np.empty((draws, values.shape[1]))
    for done in range(0, draws, block := max(1, MAX_DRAWN // len(values))):
        on_draw(done)
        # A product with the number of times that each image is drawn is faster than gathering the drawn images.
        row = np.arange(min(block, draws - done))[:, None]
        drawn = row * n + rng.integers(n, size=(len(row), n))
        times = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        means[done : done + block] = times @ values / n
    on_draw(draws)
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    return np.quantile(means, tails, axis=0).T, np.quantile(means - means[:, :1], tails, axis=0).T


def _differences(results: Sequence[Result]) -> tuple[list[str], list[str]]:
    """Return sentences on the settings that decide the numbers and differ, and on those that differ by network."""
    first, *others = results
    differing, network_differences = list[str](), list[str]()
    for number, other in enumerate(others, start=2):
        if other.name != first.name:
            differing.append(f"the evaluation is {first.name} in result 1 and {other.name} in result {number}")
            continue
        a, b = (complete_settings(result.name, plain(result.settings)) for result in (first, other))
        for name in dict.fromkeys([*a, *b]):
            old, new = ("not given" if values.get(name) is None else values[name] for values in (a, b))
            if old != new:
                sentences = network_differences if _may_differ(first.name, name, a, b) else differing
                sentences.append(f"{name} is {old} in result 1 and {new} in result {number}")
    return differing, network_differences


def _may_differ(evaluation: str, name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    if (evaluation, name, a.get("method")) == ("segment", "crop", "linear"):
        return abs(a.get(name, 0) - b.get(name, 0)) < MAX_PATCH
    return evaluation in EVALUATIONS and name in EVALUATIONS[evaluation].network_settings


def _columns(given: Sequence[Result | str | Path], results: Sequence[Result]) -> list[str]:
    """Return the names of the weights, or of the files if those are not distinct."""
    sources = [result.weights.source if result.weights is not None else "" for result in results]
    if all(sources) and len(set(sources)) == len(sources):
        return sources
    files = [f"result {i}" if isinstance(g, Result) else str(g) for i, g in enumerate(given, start=1)]
    return [f"{name} ({i})" if files.count(name) > 1 else name for i, name in enumerate(files, start=1)]


def _quoted_row(name: str, values: list[float | None]) -> Row:
    differences = [None if v is None or values[0] is None else v - values[0] for v in values]
    nothing = [None] * len(values)
    return Row(name, None, values, differences, nothing, nothing)


def _mean_rows(results: Sequence[Result], draws: int, seed: int, progress: Progress) -> list[Row]:
    """Return the means of each metric over the images that all results have."""
    shared = sorted(set.intersection(*(set(result.per_image) for result in results)))
    rows = []
    names = list(dict.fromkeys(name for image in shared for name in results[0].per_image[image]))
    for number, name in enumerate(names):
        table = [[result.per_image[image].get(name, math.nan) for result in results] for image in shared]
        values = np.array(table, np.float64)
        values = values[np.isfinite(values).all(axis=1)]  # [n, R]
        if len(values) < 2:
            continue  # one image allows no interval
        means = values.mean(axis=0)

        def tell(done: int, before: int = number * draws) -> None:
            progress("intervals", before + done, len(names) * draws)

        of_means, of_differences = (
            [Interval(*pair) for pair in intervals.tolist()]
            for intervals in paired_bootstrap(values, draws=draws, seed=seed, on_draw=tell)
        )
        differences = (means - means[0]).tolist()
        rows.append(Row(name, len(values), means.tolist(), differences, of_means, [None, *of_differences[1:]]))
    return rows


def _equal(quoted: Row, means: Row) -> bool:
    return all(
        q is not None and m is not None and math.isclose(q, m, rel_tol=1e-6, abs_tol=1e-9)
        for q, m in zip(quoted.values, means.values, strict=True)
    )
