"""One compared quantity."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

TIGHT, GRADIENTS, WEIGHTS = 1e-5, 1e-4, 1e-4
"""Tolerances of values, of gradient norms, and of final weights."""
ENTRIES = 1e-4
"""Tolerance of gradients of single losses, relative to the largest entry."""


@dataclass(frozen=True)
class Check:
    name: str
    error: float
    """Largest relative error."""
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.error <= self.tolerance  # False for NaN

    @property
    def strain(self) -> float:
        """Error as a multiple of the tolerance; infinite where an exact quantity differs, and for NaN."""
        if math.isnan(self.error) or (self.error > 0 and self.tolerance == 0):
            return math.inf
        return self.error / self.tolerance if self.tolerance else 0.0

    def __str__(self) -> str:
        return (
            f"{'ok  ' if self.holds else 'FAIL'} {self.name:<48} error {self.error:.2e}  tolerance {self.tolerance:.0e}"
        )


def compare(name: str, got: Any, expected: Any, tolerance: float) -> Check:
    """Compare numbers or tensors by the largest difference over the largest expected magnitude.

    Plain numbers keep their double precision. Expected values in float16 carry 1e-3 of rounding.
    """
    got, expected = (x.detach() if isinstance(x, Tensor) else torch.from_numpy(np.array(x)) for x in (got, expected))
    if got.shape != expected.shape:
        raise ValueError(f"{name} has shape {list(got.shape)}, {list(expected.shape)} is expected")
    if expected.dtype == torch.float16:
        tolerance = max(tolerance, 1e-3)
    scale = expected.double().abs().max().clamp(min=1e-12)
    return Check(name, float((got.double() - expected.double()).abs().max() / scale), tolerance)


def compare_norms(name: str, got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> Check:
    """Compare tensors by name: the norm of the difference over the expected norm; the worst counts."""
    if got.keys() != expected.keys():
        raise ValueError(f"{name}: other tensors than expected: {sorted(got.keys() ^ expected.keys())}")
    errors = [
        float((got[k].double() - expected[k].double()).norm() / expected[k].double().norm().clamp(min=1e-12))
        for k in got
    ]
    return Check(f"{name} ({len(errors)} tensors)", max(errors), tolerance)


def compare_exactly(name: str, got: Tensor, expected: Tensor) -> Check:
    """Compare integers or booleans: the share that differs must be 0."""
    same = got.shape == expected.shape
    return Check(name, float((got != expected).double().mean()) if same else float("inf"), 0.0)


def all_hold(checks: Iterable[Check]) -> bool:
    checks = list(checks)
    return bool(checks) and all(check.holds for check in checks)
