"""What a study found, as plain records, and the arithmetic of its tables. Scores are fractions; higher is better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from selfpatch.visualization.curves import Point

Seed = int | None
"""None: of a baseline in which nothing is random."""


@dataclass(frozen=True)
class Spread:
    """Several values in short.

    Attributes:
        deviation: the sample standard deviation; None for a single value.
        count: how many values there are.
    """

    mean: float
    deviation: float | None
    count: int

    def __str__(self) -> str:
        """In percent: `43.4 ± 0.3`."""
        return percent(self.mean) + self._deviation()

    def _deviation(self) -> str:
        return "" if self.deviation is None else f" ± {percent(self.deviation)}"


@dataclass(frozen=True)
class Difference(Spread):
    """Paired differences: of each seed that both have, one.

    Attributes:
        positive: how many of them are above zero.
    """

    positive: int

    def __str__(self) -> str:
        """In percentage points: `+0.7 ± 0.3, 3 of 3`."""
        return f"{percent(self.mean, signed=True)}{self._deviation()}, {self.positive} of {self.count}"


@dataclass(frozen=True)
class Row:
    """One line of the table: an arm, or a baseline to compare with.

    Attributes:
        numbers: column -> seed -> score in [0, 1]; what was not measured or is not finite is missing.
        steps: of training.
        minutes: seed -> training time.
    """

    name: str
    numbers: Mapping[str, Mapping[Seed, float]]
    steps: int | None = None
    minutes: Mapping[int, float] = field(default_factory=dict)

    def values(self, column: str) -> dict[Seed, float]:
        return {seed: value for seed, value in self.numbers.get(column, {}).items() if math.isfinite(value)}

    def score(self, column: str) -> Spread | None:
        """Over the seeds; None where there is no number."""
        return spread(self.values(column).values())


@dataclass(frozen=True)
class Findings:
    """All that a report says.

    Attributes:
        question: one or two sentences: which table of which paper this mirrors, and what it asks.
        columns: such as `CamVid linear mIoU`.
        baselines: what an arm has to beat: an untrained network, raw patches, mean colours.
        arms: what was trained.
        reference: the arm that the others are compared with; None: the first.
        curves: heading, such as `loss` or `DAVIS J&F, %` -> arm -> points (step, mean over seeds), drawn as they are.
        sheets: PNGs of patch features.
        failures: sentences.
        conditions: device, versions, command and the like.
        unfinished: jobs that are yet to be run.

    Raises:
        ValueError: a name is there twice, there are more baselines than letters, the reference is no arm, or a row has
            numbers of a column that is not there.
    """

    title: str
    question: str
    columns: Sequence[str]
    baselines: Sequence[Row]
    arms: Sequence[Row]
    curves: Mapping[str, Mapping[str, Sequence[Point]]] = field(default_factory=dict)
    sheets: Sequence[Path] = ()
    failures: Sequence[str] = ()
    conditions: Mapping[str, str] = field(default_factory=dict)
    unfinished: int = 0
    reference: str | None = None

    def __post_init__(self) -> None:
        rows = [*self.baselines, *self.arms]
        for names in (list(self.columns), [row.name for row in rows]):
            if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
                raise ValueError(f"{', '.join(twice)}: named more than once; give every column and row its own name")
        if len(self.baselines) > 26:
            raise ValueError(f"there are {len(self.baselines)} baselines; a letter marks each, so give at most 26")
        for row in rows:
            if unknown := [column for column in row.numbers if column not in self.columns]:
                raise ValueError(f"{row.name} has {', '.join(unknown)}; the columns are {', '.join(self.columns)}")
        if self.reference is not None and self.reference not in {arm.name for arm in self.arms}:
            arms = ", ".join(arm.name for arm in self.arms)
            raise ValueError(f"the reference {self.reference} is no arm; choose one of: {arms}")

    @property
    def seeds(self) -> list[int]:
        """Of all arms, ascending."""
        return sorted({seed for arm in self.arms for c in self.columns for seed in arm.values(c) if seed is not None})

    @property
    def compared_with(self) -> Row | None:
        """The reference arm; None where there is no arm at all."""
        return next((arm for arm in self.arms if self.reference in (None, arm.name)), None)

    def best(self, column: str) -> set[str]:
        """The arms of the highest mean as it is printed; none where there is nothing to choose from."""
        means = {arm.name: tenths(score.mean) for arm in self.arms if (score := arm.score(column)) is not None}
        return {name for name, mean in means.items() if mean == max(means.values())} if len(means) > 1 else set()

    def not_beaten(self, arm: Row, column: str) -> list[int]:
        """Return the indices of the baselines whose printed mean the arm's is not above."""
        score = arm.score(column)
        means = [baseline.score(column) for baseline in self.baselines]
        return [
            index
            for index, mean in enumerate(means)
            if score is not None and mean is not None and tenths(score.mean) <= tenths(mean.mean)
        ]


def spread(values: Iterable[float]) -> Spread | None:
    """Mean and sample standard deviation; None of no values."""
    values = list(values)
    if not values:
        return None
    return Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def paired(arm: Row, reference: Row, column: str) -> Difference | None:
    """Arm minus reference, seed by seed; None where they share no seed."""
    ours, theirs = arm.values(column), reference.values(column)
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    of_all = spread(differences)
    if of_all is None:
        return None
    return Difference(of_all.mean, of_all.deviation, of_all.count, sum(d > 0 for d in differences))


def tenths(fraction: float) -> int:
    """The tenths of a percent that are printed: numbers that read alike are alike."""
    return round(1000 * fraction)


def percent(fraction: float, *, signed: bool = False) -> str:
    """How every score is written: in percent, with one decimal."""
    return f"{tenths(fraction) / 10:{'+' if signed else ''}.1f}"
