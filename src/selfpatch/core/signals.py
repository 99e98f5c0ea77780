"""Handling of SIGTERM and Ctrl-C: they raise, so that files are closed; a second one ends the process in any case."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

PREEMPTION = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""Signals by which the scheduler of a cluster asks a job to save before it ends it; Windows has none."""
REPEATED_AFTER = 2.0
"""Seconds after which the same signal is a second one: a launcher passes on what the system sends to all processes."""
END_AFTER = 10.0
"""Seconds that a process has left to react."""


class Terminated(KeyboardInterrupt):
    """SIGTERM asks the process to end, as Ctrl-C does."""


@contextlib.contextmanager
def raising_signals() -> Iterator[None]:
    """Raise Terminated on the first SIGTERM inside, and KeyboardInterrupt on Ctrl-C.

    A process that waits within a library, e.g. for another process, runs no Python code, so that nothing is raised: it
    ends `END_AFTER` seconds after the SIGTERM that raised nothing, or after any second signal, unless it has left the
    context by then. Outside the main thread, and within another such context, do nothing.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), _Watch):
        yield
        return
    watch = _Watch()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.signal(signal.SIGTERM, watch.raise_terminated)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=watch.end_if_stuck, args=(reader,), daemon=True).start()
    try:
        yield
    finally:
        watch.reacted.set()
        watch.left.set()
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        os.close(writer)  # ends the thread


@contextlib.contextmanager
def postponed_signals() -> Iterator[None]:
    """Handle SIGTERM and Ctrl-C at the end of the context, for work that must not be left half done.

    Outside the main thread, which alone handles signals, do nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: dict[int, FrameType | None] = {}
    handlers: dict[int, Any] = {
        number: signal.signal(number, received.__setitem__) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for number, frame in received.items():
            handler = handlers[number]
            if callable(handler):
                handler(number, frame)  # to raise the signal again would count as a second one
            else:
                signal.raise_signal(number)


class _Watch:
    """Watch over the signals of one context; a context that is entered later has its own.

    Attributes:
        reacted: set once SIGTERM has raised Terminated, or the context is left.
        left: set once the context is left.
    """

    def __init__(self) -> None:
        self.reacted, self.left = threading.Event(), threading.Event()

    def raise_terminated(self, *_: object) -> None:
        """Handle SIGTERM; one that a launcher passes on as well must not interrupt what the first has begun."""
        if not self.reacted.is_set():
            self.reacted.set()
            raise Terminated

    def end_if_stuck(self, reader: int) -> None:
        """Read the numbers of signals as they arrive; the system writes them, whatever Python does."""
        received: dict[int, float] = {}
        with os.fdopen(reader, "rb", buffering=0) as numbers:
            while byte := numbers.read(1):
                number, now = byte[0], time.monotonic()
                if number not in (signal.SIGINT, signal.SIGTERM):
                    continue
                if now - received.setdefault(number, now) > (REPEATED_AFTER if number == signal.SIGTERM else 0):
                    _end_unless(self.left, 128 + number)
                elif signal.getsignal(number) == self.raise_terminated:  # not that of a training, which ends its step
                    _end_unless(self.reacted, 128 + number)


def _end_unless(happened: threading.Event, code: int) -> None:
    """End the process in a while, unless something has happened by then."""

    def wait() -> None:
        if not happened.wait(END_AFTER):
            os._exit(code)

    threading.Thread(target=wait, daemon=True).start()
