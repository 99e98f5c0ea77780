"""Handling of SIGTERM and Ctrl-C: they raise, so that files are closed; a second one ends the process in any case."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

PREEMPTION = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""Signals by which the scheduler of a cluster asks a job to save before it ends it; Windows has none."""
REPEATED_AFTER = 2.0
"""Seconds after which the same signal is a second one: a launcher passes on what the system sends to all processes."""
END_AFTER = 10.0
"""Seconds that a process has left to react."""
_reacted = threading.Event()
"""Set once SIGTERM has raised Terminated."""


class Terminated(KeyboardInterrupt):
    """SIGTERM asks the process to end, as Ctrl-C does."""


@contextlib.contextmanager
def raising_signals() -> Iterator[None]:
    """Raise Terminated on SIGTERM inside, and KeyboardInterrupt on Ctrl-C; outside the main thread, do nothing.

    A process that waits within a library, e.g. for another process, runs no Python code, so that nothing is raised: it
    ends `END_AFTER` seconds after the SIGTERM that raised nothing, or after any second signal.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _reacted.clear()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.signal(signal.SIGTERM, _raise_terminated)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_end_if_stuck, args=(reader,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)
        os.close(writer)  # ends the thread


def _raise_terminated(*_: object) -> None:
    _reacted.set()
    raise Terminated


def _end_if_stuck(reader: int) -> None:
    """Read the numbers of signals as they arrive; the system writes them, whatever Python does."""
    received: dict[int, float] = {}
    with os.fdopen(reader, "rb", buffering=0) as numbers:
        while byte := numbers.read(1):
            number, now = byte[0], time.monotonic()
            if number not in (signal.SIGINT, signal.SIGTERM):
                continue
            if now - received.setdefault(number, now) > (REPEATED_AFTER if number == signal.SIGTERM else 0):
                _in_a_while(os._exit, 128 + number)
            elif signal.getsignal(number) is _raise_terminated:  # not that of a training, which finishes its step
                _in_a_while(_end_unless_reacted, 128 + number)


def _in_a_while(end: Callable[[int], object], code: int) -> None:
    timer = threading.Timer(END_AFTER, end, args=(code,))
    timer.daemon = True
    timer.start()


def _end_unless_reacted(code: int) -> None:
    if not _reacted.is_set():
        os._exit(code)
