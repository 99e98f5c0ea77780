"""Timing of variants in turn, and comparison within a round."""

from __future__ import annotations

from functools import partial

import pytest

from benchmarks import timing
from benchmarks.timing import MIN_ROUNDS, Case, Timing, time_case


def test_variants_take_turns_after_a_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], []
    monkeypatch.setattr(timing, "perf_counter", lambda: clock[0])

    def variant(name: str, seconds: float) -> None:
        calls.append(name)
        clock[0] += seconds

    case = Case("a case", {"plain": lambda: variant("plain", 3.0), "fast": lambda: variant("fast", 1.0)}, items=6)
    result = time_case(case, seconds=0.0)
    assert calls == ["plain", "fast"] * (1 + MIN_ROUNDS)
    assert result.seconds == {"plain": [3.0] * MIN_ROUNDS, "fast": [1.0] * MIN_ROUNDS}
    assert (result.rate("fast"), result.speedup("fast")) == (6.0, (3.0, 3.0, 3.0))


def test_a_slow_case_ends_after_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(timing, "perf_counter", lambda: clock[0])

    def slow() -> None:
        clock[0] += 100.0

    result = time_case(Case("a case", {"plain": slow, "fast": slow}), seconds=4.0)
    assert result.seconds == {"plain": [100.0], "fast": [100.0]}
    assert result.speedup("fast") == (1.0, 1.0, 1.0)


def test_the_second_of_two_calls_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, calls = [0.0], {"plain": 0, "fast": 0}
    monkeypatch.setattr(timing, "perf_counter", lambda: clock[0])

    def variant(name: str) -> None:
        calls[name] += 1
        clock[0] += 10.0 if calls[name] % 2 == 0 else 1.0  # the first call warms up

    case = Case("a case", {name: partial(variant, name) for name in calls}, second_of_two=True)
    assert time_case(case, seconds=0.0).seconds == {"plain": [1.0] * MIN_ROUNDS, "fast": [1.0] * MIN_ROUNDS}


def test_speed_is_compared_within_a_round() -> None:
    """The speed-up is the median of 2, 4 and 4, not the ratio of medians, which is 2."""
    measured = Timing("a case", {"plain": [4.0, 8.0, 4.0], "fast": [2.0, 2.0, 1.0]}, items=8, unit="images")
    assert measured.speedup("fast") == (4.0, 3.0, 4.0)
    assert measured.rate("plain") == 2.0


def test_the_time_of_the_processor_can_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "process_time", iter(range(1000)).__next__)
    case = Case("a case", {"plain": lambda: None, "fast": lambda: None})
    assert time_case(case, seconds=0.0, clock="cpu").seconds == {"plain": [1] * MIN_ROUNDS, "fast": [1] * MIN_ROUNDS}
