"""Detection of losses and gradients that are not finite, without waiting for the device."""

import torch
from torch import Tensor


class DeferredFlag:
    """A bool of the device that is read later.

    On CUDA, reading it waits for the work that computed it and not for later work.

    Args:
        flag: bool scalar.
    """

    def __init__(self, flag: Tensor) -> None:
        self._flag = flag.to("cpu", non_blocking=True) if flag.is_cuda else flag
        self._copied = torch.cuda.current_stream(flag.device).record_event() if flag.is_cuda else None

    def __bool__(self) -> bool:
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._flag)


class NonFiniteCounter:
    """Counts steps in a row that were not finite.

    The flag of a step is read when the next step has been started, so that the device always has work. If one more such
    step reaches the limit, the flag is read at once, before the state changes.

    Args:
        limit: number of steps in a row at which training stops; 1 waits for every step.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_a_row = 0
        self._pending: DeferredFlag | None = None

    def reaches_limit(self, finite: DeferredFlag) -> bool:
        """Add a step that has just been started, and return whether the limit is reached."""
        self._read_pending()
        self._pending = finite
        if self._in_a_row + 1 >= self._limit:
            self._read_pending()
        return self._in_a_row >= self._limit

    def _read_pending(self) -> None:
        if self._pending is not None:
            self._in_a_row = 0 if self._pending else self._in_a_row + 1
        self._pending = None
