"""Fast paths against their plain references, interleaved in one process, as machines drift from one minute to the next.

Times are medians over rounds; what is compared is the median over rounds of the ratio within a round.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median, quantiles
from time import perf_counter

import torch

MIN_ROUNDS, MAX_ROUNDS = 3, 200


@dataclass(frozen=True)
class Case:
    """RenderBackend of doing one thing.

    Attributes:
        name: what is done.
        ways: by name, the plain reference first.
        items: how many a call handles: what the rate counts.
        unit: what the items are.
        flops: of one plain call, where they are counted; a fast way may need fewer.
        second_of_two: time each way's second call of two in a row, as the way before it left memory in another state.
    """

    name: str
    ways: Mapping[str, Callable[[], object]]
    items: float = 1.0
    unit: str = "images"
    flops: float | None = None
    second_of_two: bool = False


@dataclass(frozen=True)
class Timing:
    """What timing a case gave.

    Attributes:
        seconds: of each round, by way.
        peak_memory: bytes, by way, where they were measured.
    """

    name: str
    seconds: Mapping[str, list[float]]
    items: float
    unit: str
    flops: float | None = None
    peak_memory: Mapping[str, int] = field(default_factory=dict)

    @property
    def plain(self) -> str:
        return next(iter(self.seconds))

    def median(self, way: str) -> float:
        return median(self.seconds[way])

    def rate(self, way: str) -> float:
        """Items a second."""
        return self.items / self.median(way)

    def speedup(self, way: str) -> tuple[float, float, float]:
        """How many times as fast as the plain way: the median over rounds, and their quartiles."""
        ratios = [a / b for a, b in zip(self.seconds[self.plain], self.seconds[way], strict=True)]
        low, _, high = quantiles(ratios, n=4, method="inclusive")
        return median(ratios), low, high


def time_case(case: Case, *, seconds: float = 4.0) -> Timing:
    """Runs all ways in turn, round after round, for about so many seconds; the first round only warms up."""
    taken: dict[str, list[float]] = {way: [] for way in case.ways}
    for call in case.ways.values():
        _seconds_of(call)
    started = perf_counter()
    for done in range(MAX_ROUNDS):
        if done >= MIN_ROUNDS and perf_counter() - started > seconds:
            break
        for way, call in case.ways.items():
            if case.second_of_two:
                call()
            taken[way].append(_seconds_of(call))
    return Timing(case.name, taken, case.items, case.unit, case.flops)


def _seconds_of(call: Callable[[], object]) -> float:
    gc.collect()  # not in the middle of it
    wait_for_device()
    started = perf_counter()
    call()
    wait_for_device()
    return perf_counter() - started


def wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()
