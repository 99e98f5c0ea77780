"""Peak rate of matrix products with the shapes of a training step, an upper bound for any step."""

from __future__ import annotations

from functools import lru_cache
from time import perf_counter

import torch
from torch import Tensor

from benchmarks.timing import wait_for_device
from selfpatch.core.machine import emulates

SHAPES = ((2048, 384, 1536), (2048, 1536, 384), (2048, 2048, 2048), (2048, 256, 4096))
"""(rows, inner, columns): MLP of a ViT-S, a head's hidden layer, patches against prototypes."""
LARGER_ON_DEVICES = 8
"""Factor on the rows on a GPU."""
TRIED_ROWS = 64
"""Rows of the product that is timed first, to know how large a one the time allows."""
REPEATS = 4


@lru_cache
def matrix_ceiling(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float | None:
    """Return the best rate over all shapes, in floating-point operations per second.

    It takes about `seconds`: matrices have fewer rows on slow machines. The rate is None if the device emulates the
    type.
    """
    if emulates(dtype, device):
        return None
    return max(_best_rate(device, dtype, shape, seconds / len(SHAPES)) for shape in SHAPES)


def _best_rate(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int], seconds: float) -> float:
    rows, inner, columns = shape
    if device.type != "cpu":
        rows *= LARGER_ON_DEVICES
    b = torch.randn(inner, columns, device=device).to(dtype)
    rows = min(rows, affordable_rows(_seconds_of(torch.randn(TRIED_ROWS, inner, device=device).to(dtype), b), seconds))
    a = torch.randn(rows, inner, device=device).to(dtype)
    fastest, until = float("inf"), perf_counter() + seconds
    while perf_counter() < until or fastest == float("inf"):
        fastest = min(fastest, _seconds_of(a, b))
    return 2 * rows * inner * columns / fastest


def affordable_rows(seconds_tried: float, seconds: float) -> int:
    """Return how many rows two rounds may have, if `TRIED_ROWS` took `seconds_tried`; a multiple of them."""
    return TRIED_ROWS * max(1, int(seconds / (2 * REPEATS * max(seconds_tried, 1e-9))))


def _seconds_of(a: Tensor, b: Tensor) -> float:
    """Return the time of a product, the mean of several in a row."""
    wait_for_device()
    started = perf_counter()
    for _ in range(REPEATS):
        a @ b
    wait_for_device()
    return (perf_counter() - started) / REPEATS
