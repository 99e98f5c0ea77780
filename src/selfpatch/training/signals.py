"""Stop signals: finish the step, save a checkpoint and leave."""

import signal
import threading
from types import FrameType
from typing import Any


class StopSignals:
    """Context in which SIGTERM and SIGINT (Ctrl-C) only set `requested`, so that the loop can save and leave.

    A second SIGINT raises KeyboardInterrupt at once. The previous handlers are restored at the end. Outside the main
    thread, where Python allows no handlers, the context does nothing.

    Attributes:
        requested: number of the latest signal, or None.
    """

    def __init__(self) -> None:
        self.requested: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # A handler that was not set by Python code is None and cannot be restored.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.requested == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = number
