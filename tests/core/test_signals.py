"""SIGTERM and Ctrl-C in a command."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from selfpatch.core import signals
from selfpatch.core.signals import Terminated, postponed_signals, raising_signals


def test_sigterm_raises_and_the_handler_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)
    with pytest.raises(Terminated), raising_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert (signal.getsignal(signal.SIGTERM), signal.set_wakeup_fd(-1)) == before
    assert issubclass(Terminated, KeyboardInterrupt)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own handler, which a process in the background of a shell lacks."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt)])
def test_a_postponed_signal_raises_at_the_end(
    number: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[Any] = []
    monkeypatch.setattr(signals, "_in_a_while", lambda end, code: ends.append(end))
    before, done = signal.getsignal(number), []

    def work() -> None:
        with raising_signals(), postponed_signals():
            os.kill(os.getpid(), number)
            done.append("work")

    threads = threading.active_count()
    with pytest.raises(error):
        work()
    while threading.active_count() > threads:  # the watch has read all signals
        time.sleep(0.01)
    assert done == ["work"]
    assert os._exit not in ends, "it was taken for two signals"
    assert signal.getsignal(number) == before


def test_outside_the_main_thread_it_does_nothing() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with raising_signals(), postponed_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


@pytest.mark.parametrize(
    ("numbers", "ended"),
    [
        ([signal.SIGINT], []),
        ([signal.SIGINT, signal.SIGINT], [130]),
        ([signal.SIGTERM, signal.SIGTERM], []),  # within the same moment: passed on by a launcher
        ([signal.SIGCHLD, signal.SIGCHLD], []),
    ],
)
def test_a_second_signal_ends_a_process_that_waits(
    numbers: list[int], ended: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    codes: list[int] = []
    done = threading.Event()

    def leave(code: int) -> None:
        codes.append(code)
        done.set()

    monkeypatch.setattr(signals, "END_AFTER", 0.0)
    monkeypatch.setattr(os, "_exit", leave)
    reader, writer = os.pipe()
    os.write(writer, bytes(numbers))
    os.close(writer)
    signals._Watch().end_if_stuck(reader)
    if ended:
        assert done.wait(10)
    assert codes == ended


def timers_of_a_sigterm(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let the watch of the present context see a SIGTERM, and return the (function, exit code) that it would call."""
    timers: list[Any] = []
    monkeypatch.setattr(signals, "_in_a_while", lambda end, code: timers.append((end, code)))
    reader, writer = os.pipe()
    os.write(writer, bytes([signal.SIGTERM]))
    os.close(writer)
    signal.getsignal(signal.SIGTERM).__self__.end_if_stuck(reader)  # type: ignore[union-attr]
    return timers


@pytest.mark.parametrize("reacts", [False, True])
def test_a_sigterm_that_raises_nothing_ends_the_process(reacts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with raising_signals():
        ((end, code),) = timers_of_a_sigterm(monkeypatch)
        if reacts:
            with pytest.raises(Terminated):
                os.kill(os.getpid(), signal.SIGTERM)
        end(code)
    assert codes == ([] if reacts else [143])


@pytest.mark.parametrize("terminated", [False, True])
def test_a_sigterm_ends_no_later_command_of_the_process(terminated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may call `main` again within the seconds that the first call had to react."""
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    with contextlib.suppress(Terminated), raising_signals():
        ((end, code),) = timers_of_a_sigterm(monkeypatch)
        if terminated:
            os.kill(os.getpid(), signal.SIGTERM)
    with raising_signals():
        end(code)
    assert codes == []


WAITS_WITHOUT_PYTHON = """
import os, signal, threading, time, selfpatch.core.signals as signals
signals.END_AFTER = 0.1
with signals.raising_signals():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # another thread gets it, so that nothing wakes this one
    timer = threading.Timer(1, os.kill, args=(os.getpid(), signal.SIGTERM))
    timer.daemon = True
    timer.start()
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_process_that_runs_no_python_ends_all_the_same() -> None:
    assert subprocess.run([sys.executable, "-c", WAITS_WITHOUT_PYTHON], timeout=50, check=False).returncode == 143
