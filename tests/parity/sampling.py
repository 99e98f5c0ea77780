"""Comparison of random draws with recorded moments, quantiles and shares, in units of the sampling error of both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.parity.check import Check

Z = 4.0
"""Largest difference in standard errors; one of 16,000 true quantities exceeds it by chance."""


def compare_draws(name: str, drawn: np.ndarray, expected: dict[str, Any]) -> Iterator[Check]:
    """Compare mean, standard deviation and quantiles of n draws with recorded ones."""
    drawn = np.asarray(drawn, np.float64)
    n, recorded_n = len(drawn), expected["n"]
    error = np.hypot(drawn.std() / n**0.5, expected["standard_error"])
    yield _check(f"{name}, mean", drawn.mean() - expected["mean"], error)
    variance = drawn.var()
    fourth = ((drawn - drawn.mean()) ** 4).mean()  # the variance of a variance is (fourth moment - variance^2) / n
    error = ((fourth - variance**2) * (1 / n + 1 / recorded_n)) ** 0.5
    yield _check(f"{name}, variance", variance - expected["std"] ** 2, error)
    for level, value in expected["quantiles"].items():
        yield _quantile(f"{name}, quantile {level}", drawn, float(level), value, recorded_n)


def _quantile(name: str, drawn: np.ndarray, level: float, value: float, recorded_n: int) -> Check:
    """Compare the share of draws up to a recorded quantile with its level.

    Discrete draws jump there: the level lies between the shares below the value and up to it.
    """
    tie = 1e-9 * max(1.0, abs(value))
    below, up_to = (drawn < value - tie).mean(), (drawn <= value + tie).mean()
    share = min(max(level, below), up_to)
    return _check(name, share - level, _binomial_error(share, len(drawn), level, recorded_n))


def compare_share(name: str, drawn: np.ndarray, expected: float, recorded_n: int) -> Check:
    """Compare the share of true draws with a recorded share of n."""
    share = float(drawn.mean())
    return _check(name, share - expected, _binomial_error(share, len(drawn), expected, recorded_n))


def _binomial_error(share: float, n: int, recorded: float, recorded_n: int) -> float:
    """Return the standard error of the difference between two shares that estimate the same probability."""
    pooled = (share * n + recorded * recorded_n) / (n + recorded_n)
    return float((pooled * (1 - pooled) * (1 / n + 1 / recorded_n)) ** 0.5)


def compare_mean(name: str, drawn: np.ndarray, expected: float, recorded_n: int) -> Check:
    """Compare a mean with one whose standard error is not recorded, but whose number of draws is."""
    return _check(name, drawn.mean() - expected, drawn.std() * (1 / len(drawn) + 1 / recorded_n) ** 0.5)


def _check(name: str, difference: float, standard_error: float) -> Check:
    if standard_error == 0:
        return Check(name, 0.0 if difference == 0 else float("inf"), Z)
    return Check(name, abs(float(difference)) / float(standard_error), Z)
