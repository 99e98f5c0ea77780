"""The arithmetic of a study's tables, by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfpatch.experiments.results import Difference, Row, Seed, Spread, StudyResults, paired, percent, spread

scores = st.floats(0, 1)


def row(name: str, **columns: Mapping[Seed, float] | Sequence[float]) -> Row:
    """A sequence holds the values of seeds 0, 1, ..."""
    return Row(name, {c: v if isinstance(v, Mapping) else dict(enumerate(v)) for c, v in columns.items()})


def study_results(arms: Sequence[Row], baselines: Sequence[Row] = (), **more) -> StudyResults:
    columns = list(dict.fromkeys(column for one in [*baselines, *arms] for column in one.numbers))
    return StudyResults(
        **{"title": "T", "question": "Q?", "columns": columns, "baselines": baselines, "arms": arms, **more}
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([0.434], Spread(0.434, None, 1)),
        ([0.40, 0.42, 0.44], Spread(0.42, 0.02, 3)),  # deviations of -.02, 0, .02: sqrt(.0008 / 2)
        ([0.25, 0.25], Spread(0.25, 0.0, 2)),
    ],
)
def test_mean_and_sample_deviation(values: list[float], expected: Spread | None) -> None:
    found = spread(values)
    if expected is None or found is None:
        assert found is expected
    else:
        assert (found.mean, found.count) == (pytest.approx(expected.mean), expected.count)
        assert found.deviation == (None if expected.deviation is None else pytest.approx(expected.deviation))


@pytest.mark.parametrize(
    ("value", "signed", "expected"),
    [(0.434, False, "43.4"), (1.0, False, "100.0"), (0.0, False, "0.0"), (0.007, True, "+0.7"), (-0.0271, True, "-2.7"),
     (-0.0001, True, "+0.0"), (-0.0001, False, "0.0")],
)  # fmt: skip
def test_every_score_is_in_percent_with_one_decimal(value: float, signed: bool, expected: str) -> None:
    assert percent(value, signed=signed) == expected


def test_paired_differences() -> None:
    """Differences of .02, .01 and -.006: their mean is .008, their squared deviations .000144, .000004 and .000196."""
    ours = row("a", score={0: 0.42, 1: 0.51, 2: 0.394, 3: 0.9})
    theirs = row("b", score={0: 0.40, 1: 0.50, 2: 0.400, 7: 0.1})
    found = paired(ours, theirs, "score")
    assert isinstance(found, Difference)
    assert found.mean == pytest.approx(0.008)
    assert found.deviation == pytest.approx(math.sqrt(0.000344 / 2))
    assert (found.count, found.positive) == (3, 2)
    assert str(found) == "+0.8 ± 1.3, 2 of 3"


def test_pairs_of_one_seed_and_of_none() -> None:
    ours, theirs = row("a", x={0: 0.3, 1: 0.4}), row("b", x={1: 0.4, 2: 0.1})
    assert str(paired(ours, theirs, "x")) == "+0.0, 0 of 1"
    assert paired(ours, row("c", x={2: 0.3}), "x") is None
    assert paired(ours, theirs, "y") is None


def test_pairs_with_a_row_without_randomness() -> None:
    """Every seed is compared with its one score: .02 and -.04."""
    ours = row("a", x={0: 0.42, 4: 0.36})
    assert str(paired(ours, row("as is", x={None: 0.40}), "x")) == "-1.0 ± 4.2, 1 of 2"


@given(st.dictionaries(st.integers(0, 5), st.tuples(scores, scores), min_size=1))
def test_the_mean_of_pairs_is_the_difference_of_means(pairs: dict[int, tuple[float, float]]) -> None:
    ours = row("a", x={seed: pair[0] for seed, pair in pairs.items()})
    theirs = row("b", x={seed: pair[1] for seed, pair in pairs.items()})
    there, back = paired(ours, theirs, "x"), paired(theirs, ours, "x")
    means = ours.score("x"), theirs.score("x")
    assert there is not None
    assert back is not None
    assert means[0] is not None
    assert means[1] is not None
    assert there.mean == pytest.approx(means[0].mean - means[1].mean, abs=1e-12)
    assert there.mean == pytest.approx(-back.mean, abs=1e-12)
    assert there.deviation == (None if len(pairs) == 1 else pytest.approx(back.deviation, abs=1e-12))
    assert there.positive + back.positive == sum(a != b for a, b in pairs.values())


def test_what_is_not_finite_is_missing() -> None:
    found = row("a", x=[0.4, math.nan, math.inf])
    assert found.score("x") == Spread(0.4, None, 1)
    assert row("a", x=[math.nan]).score("x") is None


@pytest.mark.parametrize(
    ("arms", "baselines", "more", "message"),
    [
        ([row("a"), row("a")], [], {}, "a: named more than once"),
        ([row("a")], [row("a")], {}, "a: named more than once"),
        ([row("a")], [], {"columns": ["x", "x"]}, "x: named more than once"),
        ([row("a", x=[1])], [], {"columns": ["y"]}, "a has x; the columns are y"),
        (
            [row("a"), row("b")],
            [],
            {"reference": "c"},
            "the reference c is neither arm nor baseline; choose one of: a, b",
        ),
        ([row("a")], [row(f"baseline {i}") for i in range(27)], {}, "27 baselines"),
    ],
)
def test_results_say_what_is_wrong(arms, baselines, more, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study_results(arms, baselines, **more)
