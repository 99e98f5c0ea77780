"""Peak memory of a call in a process of its own."""

from __future__ import annotations

import pytest
import torch

from benchmarks.memory import peak_memory


def make_ones(num_mebibytes: int) -> object:
    return lambda: torch.ones(num_mebibytes * 2**18)


@pytest.mark.slow
def test_peak_memory_is_that_of_the_call() -> None:
    held = torch.ones(2**27)  # of this process, which must not count
    small, large = (peak_memory(make_ones, size, device=torch.device("cpu")) for size in (10, 210))
    assert 180 * 2**20 < large - small < 220 * 2**20
    assert large < held.nbytes
