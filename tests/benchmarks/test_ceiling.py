"""Peak rate of matrix products: bounded by time, and none of types that the device emulates."""

from __future__ import annotations

import pytest
import torch

from benchmarks import ceiling
from benchmarks.ceiling import TRIED_ROWS, affordable_rows, matrix_ceiling

CPU = torch.device("cpu")


def test_an_emulated_type_has_no_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceiling, "emulates", lambda dtype, device: dtype is torch.bfloat16)
    matrix_ceiling.cache_clear()
    assert matrix_ceiling(CPU, torch.bfloat16, 0.01) is None
    rate = matrix_ceiling(CPU, torch.float32, 0.02)
    assert rate is not None
    assert rate > 1e6


def test_a_slow_machine_multiplies_fewer_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that takes 10 ms a row multiplies the fewest rows, whatever the shape."""
    clock, rows = [0.0], []

    class Product:
        def __init__(self, count: int) -> None:
            self.count = count

        def to(self, dtype: torch.dtype) -> Product:
            return self

        def __matmul__(self, other: Product) -> None:
            rows.append(self.count)
            clock[0] += 0.01 * self.count

    monkeypatch.setattr(ceiling, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch, "randn", lambda count, *_, **__: Product(count))
    assert ceiling._best_rate(CPU, torch.float32, (2048, 10, 10), 0.25) == pytest.approx(2 * 10 * 10 / 0.01)
    assert set(rows) == {TRIED_ROWS}
    assert affordable_rows(1e-6, 0.25) > 2048
