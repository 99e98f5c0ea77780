"""Timing of fast paths against their plain references.

Variants take turns in one process, as machines drift from one minute to the next. Times are medians over rounds;
speed-ups are medians over rounds of the ratio within a round.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median, quantiles
from time import perf_counter, process_time

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.config import Clock
from selfpatch.core.reference import use_references

MIN_ROUNDS, MAX_ROUNDS = 3, 200
PATIENCE = 10
"""Factor on the time of a case, but at least on `SHORTEST` seconds, after which even one round suffices."""
SHORTEST = 6.0


@dataclass(frozen=True)
class Case:
    """Variants of one computation.

    Attributes:
        name: the computation.
        variants: functions by name, the plain reference first.
        items: number of items per call, which the rate counts.
        unit: name of the items.
        flops: floating-point operations of one plain call, if they are counted; a fast variant may need fewer.
        second_of_two: time the second of two calls in a row, as the variant before leaves memory in another state.
    """

    name: str
    variants: Mapping[str, Callable[[], object]]
    items: float = 1.0
    unit: str = "images"
    flops: float | None = None
    second_of_two: bool = False


def against_reference(
    name: str, fast: Callable[[], object], items: float = 1.0, unit: str = "images", *, with_flops: bool = False
) -> Case:
    """Return the case of a function against itself with plain references; `with_flops` counts its operations."""

    def plain() -> object:
        with use_references():
            return fast()

    flops = count_flops(plain) if with_flops else None
    return Case(name, {"plain": plain, "fast": fast}, items, unit, flops)


def count_flops(call: Callable[[], object]) -> float:
    """Return the floating-point operations of a call's matrix products and convolutions."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@dataclass(frozen=True)
class Timing:
    """Times of the variants of a case.

    Attributes:
        name: as in `Case`.
        seconds: seconds of each round by variant.
        items: as in `Case`.
        unit: as in `Case`.
        flops: as in `Case`.
        peak_memory: bytes by variant, if measured.
    """

    name: str
    seconds: Mapping[str, list[float]]
    items: float
    unit: str
    flops: float | None = None
    peak_memory: Mapping[str, int] = field(default_factory=dict)

    @property
    def plain(self) -> str:
        """Name of the reference."""
        return next(iter(self.seconds))

    def median(self, variant: str) -> float:
        """Return the median time of a call in seconds."""
        return median(self.seconds[variant])

    def rate(self, variant: str) -> float:
        """Return the items per second."""
        return self.items / self.median(variant)

    def speedup(self, variant: str) -> tuple[float, float, float]:
        """Return the speed-up over the reference: the median over rounds, and the quartiles."""
        ratios = [a / b for a, b in zip(self.seconds[self.plain], self.seconds[variant], strict=True)]
        low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        return median(ratios), low, high


def time_case(case: Case, *, seconds: float = 4.0, clock: Clock = "wall") -> Timing:
    """Run all variants in turn, round after round, for about `seconds`; the first round only warms up.

    There are at least `MIN_ROUNDS` rounds, unless these take much longer.
    """
    taken: dict[str, list[float]] = {variant: [] for variant in case.variants}
    for call in case.variants.values():
        _seconds_of(call, clock)
    gc.freeze()  # collections leave out all that exists; modules alone take them 0.2 s
    try:
        _take_turns(case, taken, seconds, clock)
    finally:
        gc.unfreeze()
    return Timing(case.name, taken, case.items, case.unit, case.flops)


def _take_turns(case: Case, taken: Mapping[str, list[float]], seconds: float, clock: Clock) -> None:
    """Append the seconds of a call of each variant to `taken`, round after round."""
    started = perf_counter()
    for done in range(MAX_ROUNDS):
        limit = seconds if done >= MIN_ROUNDS else PATIENCE * max(seconds, SHORTEST)
        if done and perf_counter() - started > limit:
            break
        for variant, call in case.variants.items():
            if case.second_of_two:
                call()
            taken[variant].append(_seconds_of(call, clock))


def _seconds_of(call: Callable[[], object], clock: Clock) -> float:
    now = process_time if clock == "cpu" else perf_counter
    gc.collect()  # so that it does not run during the call
    wait_for_device()
    started = now()
    call()
    wait_for_device()
    return now() - started


def wait_for_device() -> None:
    """Wait until a GPU, if there is one, has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()
