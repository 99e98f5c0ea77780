"""Stop signals: finish the step, save a checkpoint and leave."""

import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from types import FrameType
from typing import Any, TypeVar

from selfpatch.core.signals import PREEMPTION, REPEATED_AFTER, Terminated

T = TypeVar("T")


class _WaitAbandoned(BaseException):
    """A signal arrived while the next batch was awaited."""


class StopSignals:
    """Context in which signals to stop only set `requested`, so that the loop can save and leave.

    These are SIGTERM, SIGINT (Ctrl-C), and SIGUSR1 and SIGUSR2, by which schedulers announce a preemption.

    A second SIGINT raises KeyboardInterrupt at once, and so does a second SIGTERM, unless it comes within
    `REPEATED_AFTER` seconds: launchers pass on what the system sends to every process. A preemption may be announced
    several times. The previous handlers are restored at the end. Outside the main thread, where Python allows no
    handlers, the context does nothing.

    Args:
        alone: whether this is the only training process; several agree in their next step to stop.
        clock: returns seconds.

    Attributes:
        requested: number of the latest signal, or None.
    """

    def __init__(self, *, alone: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self.requested: int | None = None
        self._alone, self._clock = alone, clock
        self._requested_at = 0.0
        self._waiting = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, *PREEMPTION):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # A handler that was not set by Python code is None and cannot be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    @property
    def leaves_now(self) -> bool:
        """True if a stop is requested and no other process waits for the next step."""
        return self.requested is not None and self._alone

    def until_requested(self, items: Iterator[T]) -> Generator[T]:
        """Yield the items, but end as soon as a stop is requested while one is awaited, however long that may take.

        One of several processes waits on, see `leaves_now`.
        """
        while not self.leaves_now:
            try:
                self._waiting = self._alone
                item = next(items)
            except (StopIteration, _WaitAbandoned):
                return
            finally:
                self._waiting = False
            yield item

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = self._clock()
        if number == self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == self.requested == signal.SIGTERM and now - self._requested_at > REPEATED_AFTER:
            raise Terminated
        if number != self.requested:
            self.requested, self._requested_at = number, now
        if self._waiting:
            self._waiting = False
            raise _WaitAbandoned
