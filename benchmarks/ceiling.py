"""Peak rate of matrix products with the shapes of a training step, an upper bound for any step."""

from __future__ import annotations

from functools import lru_cache
from time import perf_counter

import torch

from benchmarks.timing import wait_for_device

SHAPES = ((2048, 384, 1536), (2048, 1536, 384), (2048, 2048, 2048), (2048, 256, 4096))
"""(rows, inner, columns): MLP of a ViT-S, a head's hidden layer, patches against prototypes."""
LARGER_ON_DEVICES = 8
"""Factor on the rows on a GPU."""


@lru_cache
def matrix_ceiling(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Return the best rate over all shapes, in floating-point operations per second."""
    return max(_best_rate(device, dtype, shape, seconds / len(SHAPES)) for shape in SHAPES)


def _best_rate(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], seconds: float) -> float:
    rows, inner, columns = shape
    if device.type != "cpu":
        rows *= LARGER_ON_DEVICES
    a = torch.randn(rows, inner, device=device).to(dtype)
    b = torch.randn(inner, columns, device=device).to(dtype)
    fastest, until = float("inf"), perf_counter() + seconds
    while perf_counter() < until or fastest == float("inf"):
        wait_for_device()
        started = perf_counter()
        for _ in range(4):
            a @ b
        wait_for_device()
        fastest = min(fastest, (perf_counter() - started) / 4)
    return 2 * rows * inner * columns / fastest
