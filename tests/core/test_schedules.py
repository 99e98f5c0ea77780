"""Factors on the learning rate at their corners."""

from __future__ import annotations

import pytest

from selfpatch.core.schedules import cosine, cosine_factor, polynomial_factor


def test_cosine_at_both_ends_and_halfway() -> None:
    assert [cosine(step, 10, 2.0, 1.0) for step in (0, 5, 10)] == pytest.approx([2.0, 1.5, 1.0])


def test_factors_on_the_learning_rate() -> None:
    cos = cosine_factor(10, warmup=2, end=0.1)
    assert [cos(0), cos(1), cos(2)] == [0.5, 1.0, 1.0]
    assert cos(6) == pytest.approx(0.55)
    assert cos(10) == pytest.approx(0.1)
    poly = polynomial_factor(10, power=1.0, warmup=2, start=0.0)
    assert poly(0) == 0.0
    assert poly(1) == pytest.approx(0.9 * 0.5)
    assert poly(5) == pytest.approx(0.5)
    assert polynomial_factor(10, power=2.0)(5) == pytest.approx(0.25)
