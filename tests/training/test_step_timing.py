"""Speed of steps, and how many of them fit into a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from selfpatch.config.sections import WatchConfig
from selfpatch.training.step_timing import Speed, measure_speed, steps_that_fit
from selfpatch.training.trainer import evaluation_steps


def test_the_first_steps_do_not_tell_the_speed() -> None:
    speed = measure_speed(iter([10.0, 2.0, 1.0, 1.0, 2.0, 1.0, 2.0, *itertools.repeat(99.0, 3)]), limit=8.5)
    assert speed == Speed(start_up=13 - 3 * 1.5, per_step=1.5)
    assert measure_speed([1.0, 2.0, 2.0, 2.0, 2.0], limit=100).start_up == 0, "first steps that are faster do not help"


def test_slow_steps_are_measured_twice_only() -> None:
    steps = iter([30.0, 20.0, 20.0])
    assert measure_speed(steps, limit=9) == Speed(start_up=10.0, per_step=20.0)
    assert list(steps) == [20.0]


@pytest.mark.parametrize("num_evaluations", [lambda n: 0, lambda n: 3 + n // 4])
@pytest.mark.parametrize("seconds", [-1.0, 0.0, 4.9, 5.0, 17.3, 100.0])
def test_the_steps_that_fit_are_the_most_that_do(seconds: float, num_evaluations: Callable[[int], int]) -> None:
    speed, evaluation = Speed(start_up=1.0, per_step=0.5), 0.25
    steps = steps_that_fit(seconds, speed, evaluation, num_evaluations)

    def cost(n: int) -> float:
        return 1 + n * 0.5 + 0.25 * num_evaluations(n)

    assert steps == max((n for n in range(1, 500) if cost(n) <= seconds), default=0)
    assert steps_that_fit(seconds, speed, evaluation, num_evaluations, most=7) == min(steps, 7)


def test_steps_at_which_a_training_is_evaluated() -> None:
    assert evaluation_steps(WatchConfig(evaluate_every=2), 5, 23) == {0, 10, 20, 23}
    assert evaluation_steps(WatchConfig(evaluate_every=0.5), 5, 5) == {0, 2, 4, 5}
    assert evaluation_steps(WatchConfig(evaluate_every=0), 5, 23) == {0, 23}
