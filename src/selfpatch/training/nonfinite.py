"""Count steps whose loss or gradient is not finite, without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor


class DeferredFlag:
    """A flag of the device that can be read later: on CUDA one then waits for what made it, not for what came since.

    Args:
        flag: a bool scalar.
    """

    def __init__(self, flag: Tensor) -> None:
        self._flag = flag.to("cpu", non_blocking=True) if flag.is_cuda else flag
        self._there = torch.cuda.current_stream(flag.device).record_event() if flag.is_cuda else None

    def __bool__(self) -> bool:
        if self._there is not None:
            self._there.synchronize()
        return bool(self._flag)


class NonFiniteCounter:
    """Counts the steps in a row that were not taken.

    A step is judged when the next one is on its way, so that the device always has work. Where one more failure would
    be one too many it is judged at once, while the state is still that of the step.

    Args:
        most: so many are too many; 1 waits for every step.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_a_row = 0
        self._pending: DeferredFlag | None = None

    def too_many(self, taken: DeferredFlag) -> bool:
        """Takes in the step that is now on its way; whether it was one failure too many."""
        self._judge()
        self._pending = taken
        if self._in_a_row + 1 >= self._most:
            self._judge()
        return self._in_a_row >= self._most

    def _judge(self) -> None:
        if self._pending is not None:
            self._in_a_row = 0 if self._pending else self._in_a_row + 1
        self._pending = None
