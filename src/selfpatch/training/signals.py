"""Stop signals: finish the step, save and leave."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class StopSignals:
    """While active, SIGTERM and SIGINT (Ctrl-C) only set `requested`, so that the loop can save and leave.

    A second SIGINT raises KeyboardInterrupt at once. The handlers of before come back at the end. Outside the main
    thread, where Python sets no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        """The number of the signal that came, the latest one; None as long as none did."""
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # None: set by other than Python code, which cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = number
