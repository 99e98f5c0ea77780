"""Numbers and curves in the report of a study."""

from __future__ import annotations

import pytest

from selfpatch.experiments.collect import mean_curve, training_minutes


def test_minutes_are_those_of_the_steps() -> None:
    rows = [
        {"step": 0, "view_matching": 0.1},
        {"step": 10, "images_per_second": 4.0},
        {"step": 10, "view_matching": 0.2},
        {"step": 30, "images_per_second": 8.0},
    ]
    assert training_minutes(rows, batch_size=6) == pytest.approx((60 / 4 + 120 / 8) / 60)


def test_curves_are_means_over_the_steps_that_all_seeds_have() -> None:
    lines = [[(0.0, 1.0), (10.0, 2.0), (20.0, 9.0)], [(0.0, 3.0), (10.0, 4.0)]]
    assert mean_curve(lines) == [(0.0, 2.0), (10.0, 3.0)]
    assert mean_curve([]) == []
