"""Results side by side, with how far their differences can be trusted.

Source of the intervals: the percentile bootstrap of Efron and Tibshirani, "An Introduction to the Bootstrap" (1993),
chapter 13, over images, with the same images drawn for all results (paired).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.markup import escape
from rich.table import Table

from selfpatch.evaluation.result import Result

OF_THE_NETWORK: Mapping[str, frozenset[str]] = {
    "davis": frozenset({"patch_size"}),
    "discover": frozenset({"patch_size"}),
    "linear": frozenset({"lr", "blocks", "mean_patch"}),
    "segment": frozenset({"patch_size", "remembered", "blocks", "channels"}),
    "detect": frozenset({"blocks", "strides"}),
    "correspond": frozenset({"patch_size", "block", "stride"}),
}
"""By evaluation: settings that may differ, as they say what was measured, not how: a property of the network, or what
the evaluation chose for it: of `linear` the best learning rate and the features by the network's width, of `segment`
the number of remembered patches, the blocks and the decoder's width, of `detect` and `correspond` the blocks and how
many pixels apart their features are. All others decide the comparison, an `lr` that is given (finetune) among them."""
LARGEST_PATCH = 32
"""`segment` rounds the crop of a linear layer down to a multiple of the patch: less than this is no difference."""
CONFIDENCE = 0.95
DRAWS = 10_000
ABSENT = object()


class Interval(NamedTuple):
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One number of every result.

    Attributes:
        name: of the metric.
        images: over how many images this is the mean, with its intervals; None: the metric as the results quote it.
        values: one a result; None where it has no such metric.
        differences: each value minus the first result's.
        intervals: of the values; None where there is none.
        difference_intervals: of the differences; None for the first result.
    """

    name: str
    images: int | None
    values: Sequence[float | None]
    differences: Sequence[float | None]
    intervals: Sequence[Interval | None]
    difference_intervals: Sequence[Interval | None]

    @property
    def title(self) -> str:
        return self.name if self.images is None else f"{self.name}, mean of {self.images}"


@dataclass(frozen=True)
class Comparison:
    """Results side by side, differences being to the first.

    Attributes:
        columns: a name for each result.
        lines: first the metrics that are quoted, then the means over images.
        differing: what the results do not have in common, though it decides the numbers: empty, unless that was
            allowed.
        of_the_networks: what else they do not have in common, as their networks are others: see `OF_THE_NETWORK`.
    """

    columns: Sequence[str]
    lines: Sequence[Line]
    differing: Sequence[str] = ()
    of_the_networks: Sequence[str] = ()

    def table(self) -> Table:
        """For the terminal: a row a metric, a column a result; below each number its interval."""
        caption = [f"[low, high]: {CONFIDENCE:.0%} bootstrap intervals over the images that all results have"]
        table = Table(title="comparison", caption=escape("\n".join([*caption, *self.differing, *self.of_the_networks])))
        table.add_column("metric")
        for column in self.columns:
            table.add_column(escape(column), justify="right", overflow="fold")
        for line in self.lines:
            table.add_row(escape(line.title), *[escape(_cell(line, i)) for i in range(len(self.columns))])
        return table


def compare(
    results: Sequence[Result | str | Path],
    *,
    allow_different: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Puts results of one evaluation side by side.

        for each quoted metric: the results' values, and their differences to the first one
        for each metric that images have values of, in all results:
            images = those that have a finite value in every result
            mean   = of a result, over these images
            repeat `draws` times: draw as many images with replacement, the same ones for all results
                                  -> the mean of each result, and its difference to the first one's
            interval = the 2.5th to the 97.5th percentile of these means, and of these differences

    A difference whose interval excludes 0 is more than chance would often make of other images of this kind; the
    intervals say nothing of another seed of training. Means over images have lines of their own, as a metric that is
    quoted may be no such mean: DAVIS quotes means over objects and draws sequences, mIoU is no mean over images at
    all. Where the two are one number for every result, the quoted line has the intervals.

    Args:
        results: at least two, or the paths of their files.
        allow_different: put side by side what was measured in different ways, or by different evaluations, too.
        draws: of the bootstrap.
        seed: of the draws; the intervals are the same for a seed, in whatever order images are named.

    Raises:
        ValueError: fewer than two results, one that cannot be read, or other evaluations, data or settings.
    """
    if len(results) < 2:
        raise ValueError(f"a comparison needs two or more results; {len(results)} named")
    if draws < 1:
        raise ValueError(f"draws is {draws}; use 1 or more, e.g. {DRAWS}")
    loaded = [result if isinstance(result, Result) else Result.load(result) for result in results]
    differing, of_the_networks = _differing(loaded)
    if differing and not allow_different:
        raise ValueError(f"the results cannot be compared: {differing[0]}; allow it with --allow-different")
    names = list(dict.fromkeys(name for result in loaded for name in result.metrics))
    quoted = [_quoted(name, [result.metrics.get(name) for result in loaded]) for name in names]
    lines = _merged(quoted, _means(loaded, draws, seed))
    return Comparison(_columns(results, loaded), lines, differing, of_the_networks)


def paired_bootstrap(values: np.ndarray, *, draws: int = DRAWS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Intervals of means and of their differences to the first one.

    Args:
        values: [n, R] of n >= 2 images and R results.
        draws: of n images with replacement, the same ones for every result.
        seed: of the draws.

    Returns:
        [R, 2] low and high end of each mean, and [R, 2] of each difference.
    """
    rng = np.random.default_rng(seed)
    n = len(values)
    # How often each image is drawn says as much as which ones are, and a product is faster than gathering them.
    means = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) @ values for _ in range(draws)]) / n
    tails = [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]
    return np.quantile(means, tails, axis=0).T, np.quantile(means - means[:, :1], tails, axis=0).T


def _differing(results: Sequence[Result]) -> tuple[list[str], list[str]]:
    """A sentence for each thing that decides the numbers and is not the same throughout, and for each that comes with
    the network.
    """
    first, *others = results
    sentences, of_the_networks = list[str](), list[str]()
    for number, other in enumerate(others, start=2):
        if other.name != first.name:
            sentences.append(f"the evaluation is {first.name} in result 1 and {other.name} in result {number}")
            continue
        mine, its = _plain(first.settings), _plain(other.settings)
        for name in dict.fromkeys([*mine, *its]):
            if mine.get(name, ABSENT) != its.get(name, ABSENT):
                a, b = (str(values[name]) if name in values else "not given" for values in (mine, its))
                kind = of_the_networks if _is_of_the_network(first.name, name, mine, its) else sentences
                kind.append(f"{name} is {a} in result 1 and {b} in result {number}")
    return sentences, of_the_networks


def _is_of_the_network(evaluation: str, name: str, a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether a setting that differs may do so."""
    if (evaluation, name, a.get("method")) == ("segment", "crop", "linear"):
        return abs(a.get(name, 0) - b.get(name, 0)) < LARGEST_PATCH
    return name in OF_THE_NETWORK.get(evaluation, ())


def _plain(settings: Mapping[str, object]) -> dict[str, object]:
    """As JSON gives them back: a tuple is a list."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}


def _columns(given: Sequence[Result | str | Path], results: Sequence[Result]) -> list[str]:
    """By the weights; where that does not tell the results apart, by the file or the place in the list."""
    sources = [result.weights.source if result.weights is not None else "" for result in results]
    if all(sources) and len(set(sources)) == len(sources):
        return sources
    files = [f"result {i}" if isinstance(g, Result) else str(g) for i, g in enumerate(given, start=1)]
    return [f"{name} ({i})" if files.count(name) > 1 else name for i, name in enumerate(files, start=1)]


def _quoted(name: str, values: list[float | None]) -> Line:
    differences = [None if v is None or values[0] is None else v - values[0] for v in values]
    nothing = [None] * len(values)
    return Line(name, None, values, differences, nothing, nothing)


def _means(results: Sequence[Result], draws: int, seed: int) -> list[Line]:
    """The means over the images that all results have, metric by metric."""
    shared = set.intersection(*(set(result.per_image) for result in results))
    names = dict.fromkeys(name for image in sorted(shared) for name in results[0].per_image[image])
    lines = []
    for name in names:
        rows = [[result.per_image[image].get(name, math.nan) for result in results] for image in sorted(shared)]
        values = np.array(rows, np.float64)
        values = values[np.isfinite(values).all(axis=1)]  # [n, R]
        if len(values) < 2:
            continue  # one image says nothing of others
        means = values.mean(axis=0)
        of_means, of_differences = paired_bootstrap(values, draws=draws, seed=seed)
        lines.append(
            Line(
                name,
                len(values),
                means.tolist(),
                (means - means[0]).tolist(),
                [Interval(*pair) for pair in of_means.tolist()],
                [None, *(Interval(*pair) for pair in of_differences.tolist()[1:])],
            )
        )
    return lines


def _merged(quoted: list[Line], means: list[Line]) -> list[Line]:
    """Means over images that are the quoted numbers themselves take their places."""
    own = {line.name: line for line in means}
    same = {line.name for line in quoted if line.name in own and _same(line.values, own[line.name].values)}
    return [own[line.name] if line.name in same else line for line in quoted] + [
        line for line in means if line.name not in same
    ]


def _same(quoted: Sequence[float | None], means: Sequence[float | None]) -> bool:
    return all(
        q is not None and m is not None and math.isclose(q, m, rel_tol=1e-6, abs_tol=1e-9)
        for q, m in zip(quoted, means, strict=True)
    )


def _cell(line: Line, column: int) -> str:
    value, difference = line.values[column], line.differences[column]
    interval, of_difference = line.intervals[column], line.difference_intervals[column]
    if value is None:
        return "\N{EN DASH}"
    text = f"{value:.4f}"
    if interval is not None:
        text += f"\n[{interval.low:.4f}, {interval.high:.4f}]"
    if column and difference is not None:
        text += f"\n{difference:+.4f}"
    if of_difference is not None:
        text += f"\n[{of_difference.low:+.4f}, {of_difference.high:+.4f}]"
    return text
