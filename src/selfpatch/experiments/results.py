"""Results of a study as plain records, and the arithmetic of its tables. Scores are fractions; higher is better."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev

from selfpatch.visualization.curves import Point

Seed = int | None
"""Seed of a run, or None for a baseline without randomness."""


@dataclass(frozen=True)
class Spread:
    """Mean and spread of several values."""

    mean: float
    deviation: float | None
    """Sample standard deviation, or None for a single value."""
    count: int

    def __str__(self) -> str:
        """Return the spread in percent, such as `43.4 ± 0.3`."""
        return self._in_percent()

    def _in_percent(self, *, signed: bool = False) -> str:
        deviation = "" if self.deviation is None else f" ± {percent(self.deviation)}"
        return percent(self.mean, signed=signed) + deviation


@dataclass(frozen=True)
class Difference(Spread):
    """Mean and spread of paired differences, one for each seed that both arms have."""

    positive: int
    """Number of differences above zero."""

    def __str__(self) -> str:
        """Return the difference in percentage points, such as `+0.7 ± 0.3, 3 of 3`."""
        return f"{self._in_percent(signed=True)}, {self.positive} of {self.count}"


@dataclass(frozen=True)
class Row:
    """One line of the table: an arm or a baseline."""

    name: str
    numbers: Mapping[str, Mapping[Seed, float]]
    """Column -> seed -> score in [0, 1]; scores that were not measured are missing."""
    steps: int | None = None
    """Number of training steps, if trained."""
    minutes: Mapping[int, float] = field(default_factory=dict)
    """Seed -> training time in minutes."""

    def values(self, column: str) -> dict[Seed, float]:
        """Return the finite scores of a column by seed."""
        return {seed: value for seed, value in self.numbers.get(column, {}).items() if math.isfinite(value)}

    def score(self, column: str) -> Spread | None:
        """Return the spread over the seeds, or None if there is no score."""
        return spread(self.values(column).values())


@dataclass(frozen=True)
class StudyResults:
    """Content of a report.

    Raises:
        ValueError: a name occurs twice, there are over 26 baselines, the reference is no row, or a column is unknown.
    """

    title: str
    question: str
    """One or two sentences: which table of which paper the study mirrors, and what it asks."""
    columns: Sequence[str]
    """Headings, such as `CamVid linear mIoU`."""
    baselines: Sequence[Row]
    """Scores to beat: an untrained network, raw patches, mean colours."""
    arms: Sequence[Row]
    """Trained networks."""
    curves: Mapping[str, Mapping[str, Sequence[Point]]] = field(default_factory=dict)
    """Heading, such as `loss` or `DAVIS J&F, %` -> arm -> points (step, mean over seeds), drawn as they are."""
    sheets: Sequence[Path] = ()
    """PNGs of patch features."""
    failures: Sequence[str] = ()
    warnings: Sequence[str] = ()
    """Sentences on degenerate inputs of evaluations."""
    conditions: Mapping[str, str] = field(default_factory=dict)
    """Device, versions, command and the like."""
    num_unfinished: int = 0
    """Number of jobs that have not run yet."""
    reference: str | None = None
    """Arm or baseline that the arms are compared with. If None, the first arm."""

    def __post_init__(self) -> None:
        rows = [*self.arms, *self.baselines]
        for names in (list(self.columns), [row.name for row in rows]):
            if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
                raise ValueError(f"{', '.join(twice)}: named more than once; give every column and row its own name")
        if len(self.baselines) > 26:
            raise ValueError(f"there are {len(self.baselines)} baselines; a letter marks each, so give at most 26")
        for row in rows:
            if unknown := [column for column in row.numbers if column not in self.columns]:
                raise ValueError(f"{row.name} has {', '.join(unknown)}; the columns are {', '.join(self.columns)}")
        if self.reference not in (None, *(row.name for row in rows)):
            choices = ", ".join(row.name for row in rows)
            raise ValueError(f"the reference {self.reference} is neither arm nor baseline; choose one of: {choices}")

    @property
    def seeds(self) -> list[int]:
        """Seeds of all arms in ascending order."""
        return sorted({seed for arm in self.arms for c in self.columns for seed in arm.values(c) if seed is not None})

    @property
    def compared_with(self) -> Row | None:
        """The reference, or None if there is no arm."""
        rows = [*self.arms, *self.baselines] if self.arms else []
        return next((row for row in rows if self.reference in (None, row.name)), None)

    def best(self, column: str) -> set[str]:
        """Return the arms with the highest printed mean, or none if fewer than two arms have a score."""
        means = {arm.name: tenths(score.mean) for arm in self.arms if (score := arm.score(column)) is not None}
        return {name for name, mean in means.items() if mean == max(means.values())} if len(means) > 1 else set()

    def not_beaten(self, arm: Row, column: str) -> list[int]:
        """Return the indices of the baselines whose printed mean is at least an arm's."""
        score, scores = arm.score(column), [baseline.score(column) for baseline in self.baselines]
        return [i for i, s in enumerate(scores) if score and s and tenths(score.mean) <= tenths(s.mean)]


def spread(values: Iterable[float]) -> Spread | None:
    """Return mean and sample standard deviation, or None for no values."""
    values = list(values)
    deviation = stdev(values) if len(values) > 1 else None
    return Spread(fmean(values), deviation, len(values)) if values else None


def paired(arm: Row, reference: Row, column: str) -> Difference | None:
    """Return arm minus reference, seed by seed, or None if they share no seed.

    A reference without randomness has one score, which every seed of the arm is compared with.
    """
    values, reference_values = arm.values(column), reference.values(column)
    same = reference_values.get(None)
    pairs = [(value, reference_values.get(seed, same)) for seed, value in values.items()]
    differences = [value - other for value, other in pairs if other is not None]
    total = spread(differences)
    return None if total is None else Difference(**vars(total), positive=sum(d > 0 for d in differences))


def tenths(fraction: float) -> int:
    """Return the tenths of a percent that are printed, so that scores that read alike compare as equal."""
    return round(1000 * fraction)


def percent(fraction: float, *, signed: bool = False) -> str:
    """Return a score in percent with one decimal."""
    return f"{tenths(fraction) / 10:{'+' if signed else ''}.1f}"
