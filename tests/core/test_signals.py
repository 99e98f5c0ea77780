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
    ends: list[tuple[threading.Event, int]] = []
    monkeypatch.setattr(signals, "_end_unless", lambda *end: ends.append(end))
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
    assert len(ends) < 2, "it was taken for two signals"
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


@pytest.mark.parametrize("postponed", [False, True])
def test_a_sigterm_that_is_passed_on_does_not_interrupt_the_clean_up(postponed: bool) -> None:
    done = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("it raises")
        finally:
            with postponed_signals() if postponed else contextlib.nullcontext():
                os.kill(os.getpid(), signal.SIGTERM)
            done.append("clean-up")

    with pytest.raises(Terminated), raising_signals():
        work()
    assert done == ["clean-up"]


def test_a_context_within_another_is_the_same_one() -> None:
    with raising_signals():
        handler = signal.getsignal(signal.SIGTERM)
        with raising_signals():
            assert signal.getsignal(signal.SIGTERM) == handler
        assert not handler.__self__.left.is_set()  # type: ignore[union-attr]


def ends_after(numbers: list[int], watch: signals._Watch, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Let a watch see signals, and return what would keep them from ending the process, and the exit codes."""
    ends: list[tuple[threading.Event, int]] = []
    monkeypatch.setattr(signals, "_end_unless", lambda *end: ends.append(end))
    reader, writer = os.pipe()
    os.write(writer, bytes(numbers))
    os.close(writer)
    watch.end_if_stuck(reader)
    names = {watch.left: "left", watch.reacted: "reacted"}
    return [(names[event], code) for event, code in ends]


@pytest.mark.parametrize(
    ("numbers", "ends"),
    [
        ([signal.SIGINT], []),
        ([signal.SIGINT, signal.SIGINT], [("left", 130)]),
        ([signal.SIGTERM, signal.SIGTERM], []),  # within the same moment: passed on by a launcher
        ([signal.SIGCHLD, signal.SIGCHLD], []),
    ],
)
def test_a_second_signal_ends_a_process_that_waits(
    numbers: list[int], ends: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ends_after(numbers, signals._Watch(), monkeypatch) == ends


def test_a_second_sigterm_ends_a_process_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "REPEATED_AFTER", -1.0)
    assert ends_after([signal.SIGTERM], signals._Watch(), monkeypatch) == [("left", 143)]


def test_a_sigterm_that_raises_nothing_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with raising_signals():
        watch = signal.getsignal(signal.SIGTERM).__self__  # type: ignore[union-attr]
        assert ends_after([signal.SIGTERM], watch, monkeypatch) == [("reacted", 143)]
        assert not watch.reacted.is_set()
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        assert watch.reacted.is_set()
        assert not watch.left.is_set()
    assert watch.left.is_set()


@pytest.mark.parametrize("happened", [False, True])
def test_a_process_ends_unless_it_reacts(happened: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program may call `main` again within the seconds that the first call had to react."""
    codes: list[int] = []
    monkeypatch.setattr(signals, "END_AFTER", 0.0)
    monkeypatch.setattr(os, "_exit", codes.append)
    event, threads = threading.Event(), threading.active_count()
    if happened:
        event.set()
    signals._end_unless(event, 143)
    while threading.active_count() > threads:
        time.sleep(0.01)
    assert codes == ([] if happened else [143])


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
