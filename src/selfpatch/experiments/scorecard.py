"""Scorecard: the results of suites of one or more networks, one benchmark a line, with bootstrap intervals."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from selfpatch.core.folders import subfolders
from selfpatch.core.text import format_number
from selfpatch.evaluation.compare import DRAWS, Interval, Row, are_comparable, rows_of
from selfpatch.evaluation.config import EvaluationConfig
from selfpatch.evaluation.headlines import RADAR, headline_of
from selfpatch.evaluation.registry import find_config
from selfpatch.evaluation.result import Progress, Result, silent
from selfpatch.experiments.left_out import LeftOut, read_left_out

SPLITS = ("train", "val", "test")
"""Names of folders that say nothing without the name of the folder above."""
SHOWN_SETTINGS = ("preset", "methods", "matching", "facet", "kind", "resolution", "limit")
"""Settings that are shown first, texts among them without their names, where benchmarks of one data set differ."""


@dataclass(frozen=True)
class NetworkResults:
    """The results of one network."""

    name: str
    results: Sequence[Result]
    left_out: Sequence[LeftOut] = ()
    """Evaluations of the suite that have no result."""

    @property
    def sha256(self) -> str | None:
        """Hash of the weights; None if no result knows it."""
        return next((r.weights.sha256 for r in self.results if r.weights is not None and r.weights.sha256), None)


@dataclass(frozen=True)
class Benchmark:
    """One evaluation with its settings on one data set; the lists hold one value for each network, or None.

    Without a result of any network, there is no metric, and all values are None.
    """

    title: str
    """Name of the evaluation and of the data, and what distinguishes it from others."""
    metric: str
    """The quoted metric."""
    higher_is_better: bool
    results: Sequence[Result | None]
    quoted: Row
    """Quoted metric, with intervals if it is a mean over images."""
    of_images: Row | None
    """Mean over images, with intervals, if the quoted metric is no such mean."""
    left_out: Sequence[LeftOut | None]
    """Reasons of the networks that have no result."""

    @property
    def best(self) -> set[int]:
        """Numbers of the networks with the best value, as it is printed; empty if fewer than two have a value."""
        found = [(i, value) for i, value in enumerate(self.quoted.values) if value is not None]
        values = {i: self.printed(value) for i, value in found if not math.isnan(value)}
        if len(values) < 2:
            return set()
        best = (max if self.higher_is_better else min)(values.values(), key=float)
        return {i for i, value in values.items() if value == best}

    def printed(self, value: float, sign: str = "") -> str:
        """Return a number of this benchmark for a table: in percent, but errors as they are."""
        return format_number(100 * value, f"{sign}.1f") if self.higher_is_better else format_number(value, f"{sign}.3f")

    @property
    def is_measured(self) -> bool:
        """True if a network has a result."""
        return any(result is not None for result in self.results)

    @property
    def radar_scores(self) -> list[float | None]:
        """Scores from 0 to 1, the higher the better."""
        metric = next((RADAR[result.name] for result in self.results if result and result.name in RADAR), None)
        if metric is None:
            return list(self.quoted.values)
        return [None if result is None else result.metrics.get(metric) for result in self.results]


@dataclass(frozen=True)
class Scorecard:
    """Benchmarks of several networks; differences are to the first one."""

    networks: Sequence[NetworkResults]
    benchmarks: Sequence[Benchmark]

    @property
    def names(self) -> list[str]:
        """Distinct names of the networks."""
        names = [network.name for network in self.networks]
        return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, start=1)]

    @property
    def warnings(self) -> list[str]:
        """Sentences on degenerate inputs."""
        return [
            f"{name}, {benchmark.title}: {line}"
            for i, name in enumerate(self.names)
            for benchmark in self.benchmarks
            if (result := benchmark.results[i]) is not None
            for line in result.warnings
        ]


def read_network(folder: str | Path) -> NetworkResults:
    """Return the results in the folder of a suite, or a single result of a file or in the folder of an evaluation.

    What the suite left out has no result, even if an earlier run left a file.

    Raises:
        ValueError: there is no result, or one cannot be read.
    """
    path = Path(folder).expanduser()
    files = [path] if path.is_file() or (path / "result.json").is_file() else []
    left_out = list[LeftOut]()
    if not files and path.is_dir():
        left_out = read_left_out(path)
        without = {one.folder for one in left_out}
        entries = [e for e in subfolders(path) if re.match(r"\d+-", e.name) and e.name not in without]
        entries.sort(key=lambda entry: int(entry.name.partition("-")[0]))
        files = [entry / "result.json" for entry in entries if (entry / "result.json").is_file()]
    if not files:
        raise ValueError(f"{path} holds no results; give a folder that `selfpatch evaluate` wrote, or a result.json")
    results = [Result.load(file) for file in files]
    sources = [result.weights.source for result in results if result.weights is not None]
    return NetworkResults(sources[0] if sources else path.name, results, left_out)


def make_scorecard(networks: Sequence[NetworkResults], draws: int = DRAWS, progress: Progress = silent) -> Scorecard:
    """Lay the results of networks side by side.

        for each result of each network:
            it joins the benchmark with the same evaluation, settings and name of the data, or begins a new one
        for each evaluation that a network's suite left out: the same
        for each benchmark: the metric to quote, and bootstrap intervals over the images that all its networks have

    Networks may have other patch sizes or layers, see `EvaluationConfig.network_settings`. Results without a metric to
    quote are left out.
    """
    groups: list[dict[int, Result]] = []
    for number, network in enumerate(networks):
        for result in network.results:
            fitting = (g for g in groups if number not in g and are_comparable(next(iter(g.values())), result))
            group = next(fitting, None)
            if group is None:
                groups.append(group := {})
            group[number] = result
    groups = [group for group in groups if headline_of(next(iter(group.values()))) is not None]
    reasons = _left_out(networks, groups)
    firsts = [next(iter(group.values()), None) for group in groups]
    titles = _titles([
        next(iter(left_out.values())).request if first is None else first
        for first, left_out in zip(firsts, reasons, strict=True)
    ])  # fmt: skip
    benchmarks = []
    for number, (title, group, left_out) in enumerate(zip(titles, groups, reasons, strict=True), start=1):

        def tell(what: str, done: int, total: int, where: str = f"benchmark {number} of {len(titles)}") -> None:
            progress(f"{what}, {where}", done, total)

        benchmarks.append(_benchmark(title, group, left_out, len(networks), draws, tell))
    return Scorecard(networks, benchmarks)


def _left_out(networks: Sequence[NetworkResults], groups: list[dict[int, Result]]) -> list[dict[int, LeftOut]]:
    """Return what is left out of each group by network, and append an empty group for each that no network has."""
    found: list[dict[int, LeftOut]] = [{} for _ in groups]
    for number, network in enumerate(networks):
        for one in network.left_out:
            for group, left_out in zip(groups, found, strict=True):
                answered = any(one.is_answered_by(result) for result in group.values())
                alike = any(are_comparable(one.request, other.request) for other in left_out.values())
                if number not in {*group, *left_out} and (answered or alike):
                    left_out[number] = one
                    break
            else:
                groups.append({})
                found.append({number: one})
    return found


def _benchmark(
    title: str,
    group: Mapping[int, Result],
    left_out: Mapping[int, LeftOut],
    num_networks: int,
    draws: int,
    progress: Progress,
) -> Benchmark:
    results, reasons = list(group.values()), [left_out.get(i) for i in range(num_networks)]
    nothing = [None] * num_networks
    if not results:
        empty = Row("", None, nothing, nothing, nothing, nothing)
        return Benchmark(title, "", True, nothing, empty, None, reasons)
    headline = headline_of(results[0])
    assert headline is not None
    rows = rows_of(results, draws, progress=progress)
    quoted = next(row for row in rows if row.name == headline[0])
    means = [row for row in rows if row.num_images is not None]
    # `PCK@0.1` for `PCK@0.1 per image`, `mIoU per image` for `mIoU`.
    means.sort(key=lambda row: row.name not in headline[0] and headline[0] not in row.name)
    of_images = means[0] if quoted.num_images is None and means else None
    columns = [list(group).index(i) if i in group else None for i in range(num_networks)]
    spread_means = None if of_images is None else _spread(of_images, columns)
    by_network = [group.get(i) for i in range(num_networks)]
    return Benchmark(title, *headline, by_network, _spread(quoted, columns), spread_means, reasons)


def _spread(row: Row, columns: Sequence[int | None]) -> Row:
    """Return a row with the columns of all networks; those without a result hold None."""

    def spread(values: Sequence[float | None]) -> list[float | None]:
        return [None if column is None else values[column] for column in columns]

    def spread_intervals(values: Sequence[Interval | None]) -> list[Interval | None]:
        return [None if column is None else values[column] for column in columns]

    first = columns[0] is not None  # differences are to the first network
    return Row(
        row.name, row.num_images, spread(row.values),
        spread(row.differences) if first else [None] * len(columns),
        spread_intervals(row.intervals),
        spread_intervals(row.difference_intervals) if first else [None] * len(columns),
    )  # fmt: skip


def _titles(results: Sequence[Result]) -> list[str]:
    """Return a distinct title of each benchmark: evaluation and data, then the settings that differ.

    settings of results of one evaluation and data set are shown, if they differ, in this order:
        the preset, which decides others
        of those with one preset, all that can be given
        of those that are still alike, what the data or the network decided, until they are distinct
    """
    kinds = [f"{result.name} {result.settings.get('method', '')}".rstrip() for result in results]
    paths = [Path(str(result.settings.get("data", ""))) for result in results]
    data = [f"{path.parent.name}/{path.name}" if path.name in SPLITS else path.name for path in paths]
    titles = [", ".join(part for part in pair if part) for pair in zip(kinds, data, strict=True)]
    given = [field.name for result in results for field in fields(_config_of(result))]
    others = [name for result in results for name in result.settings if name != "data"]
    for names in (["preset"], [*SHOWN_SETTINGS, *given], *([name] for name in dict.fromkeys(others))):
        _distinguish(titles, results, names)
    return [f"{t} ({i})" if titles.count(t) > 1 else t for i, t in enumerate(titles, start=1)]


def _config_of(result: Result) -> type[EvaluationConfig]:
    """Return the class of the settings of a result; the base class, which has none, if there is none any more."""
    try:
        return find_config(result.name).variant(result.settings)
    except ValueError:
        return EvaluationConfig


def _distinguish(titles: list[str], results: Sequence[Result], names: Sequence[str]) -> None:
    """Append to titles that are equal those of the named settings that differ between their results."""
    for title in {title for title in titles if titles.count(title) > 1}:
        alike = [i for i, other in enumerate(titles) if other == title]
        for name in dict.fromkeys(names):
            values = [results[i].settings.get(name) for i in alike]
            if len({str(value) for value in values}) > 1:
                for i, value in zip(alike, values, strict=True):
                    titles[i] += f", {_shown_setting(name, value)}"


def _shown_setting(name: str, value: Any) -> str:
    if value is None:
        return f"default {name}"
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    return value if isinstance(value, str) and name in SHOWN_SETTINGS else f"{name} {value}"
