"""Stop signals: what SIGTERM and SIGINT do while a run trains."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from selfpatch.core.signals import PREEMPTION, REPEATED_AFTER, Terminated
from selfpatch.training.signals import StopSignals

CHILD = """
import sys, time
from selfpatch.training.signals import StopSignals
with StopSignals() as stop:
    print("ready", flush=True)
    while stop.requested is None:
        time.sleep(0.01)
    print("stopping", stop.requested, flush=True)
    if sys.argv[1] == "wait":
        time.sleep(60)
print("saved", flush=True)
"""


def start_child(mode: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, mode], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


class TestStopSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_the_loop_leaves_by_itself(self, number: signal.Signals) -> None:
        child = start_child("leave")
        child.send_signal(number)
        out, _ = child.communicate(timeout=60)
        assert out == f"stopping {int(number)}\nsaved\n"
        assert child.returncode == 0

    def test_a_second_interrupt_ends_it_at_once(self) -> None:
        child = start_child("wait")
        child.send_signal(signal.SIGINT)
        assert child.stdout is not None
        assert child.stdout.readline() == "stopping 2\n"
        child.send_signal(signal.SIGINT)
        out, error = child.communicate(timeout=30)
        assert out == ""
        assert "KeyboardInterrupt" in error
        assert child.returncode == -signal.SIGINT

    def test_an_interrupt_after_a_terminate_still_lets_it_save(self) -> None:
        with StopSignals() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.requested == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)

    def test_a_terminate_counts_once_more_after_a_while(self) -> None:
        """A launcher passes on what the system sends to all processes: one request arrives twice."""
        times = iter([100.0, 100.1, 100.0 + REPEATED_AFTER, 100.1 + REPEATED_AFTER])
        with StopSignals(clock=lambda: next(times)) as stop:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
            assert stop.requested == signal.SIGTERM
            with pytest.raises(Terminated):
                os.kill(os.getpid(), signal.SIGTERM)

    @pytest.mark.parametrize("number", PREEMPTION)
    def test_a_pre_emption_may_be_announced_twice(self, number: signal.Signals) -> None:
        times = iter([100.0, 101.0 + REPEATED_AFTER])
        with StopSignals(clock=lambda: next(times)) as stop:
            for _ in range(2):
                os.kill(os.getpid(), number)
            assert stop.requested == number

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_wait_for_the_next_item_is_abandoned(self, number: signal.Signals) -> None:
        def items() -> Iterator[int]:
            yield 1
            os.kill(os.getpid(), number)
            pytest.fail("it is not waited for")

        with StopSignals() as stop:
            assert list(stop.until_requested(items())) == [1]
            assert stop.requested == number
            assert list(stop.until_requested(items())) == [], "requested before"

    def test_a_request_between_items_waits_for_none(self) -> None:
        with StopSignals() as stop:
            for item in stop.until_requested(iter(range(5))):
                os.kill(os.getpid(), signal.SIGTERM)
                assert item == 0

    def test_one_of_several_processes_waits_for_its_step(self) -> None:
        with StopSignals(alone=False) as stop:
            items = (os.kill(os.getpid(), signal.SIGTERM) or number for number in range(3))
            assert list(stop.until_requested(items)) == [0, 1, 2]
            assert stop.requested == signal.SIGTERM

    def test_handlers_come_back(self) -> None:
        before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        with contextlib.suppress(RuntimeError), StopSignals() as stop:
            assert stop.requested is None
            assert signal.getsignal(signal.SIGTERM) is not before[0]
            raise RuntimeError
        assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before

    def test_outside_the_main_thread_it_does_nothing(self) -> None:
        before = signal.getsignal(signal.SIGTERM)
        seen = []

        def work() -> None:
            with StopSignals() as stop:
                seen.append((stop.requested, signal.getsignal(signal.SIGTERM)))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert seen == [(None, before)]
