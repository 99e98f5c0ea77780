"""Progress, speed, signals and collapse warnings."""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import signal
import subprocess
import sys
import threading

import pytest
from rich.console import Console

from selfpatch.config.run import RunConfig
from selfpatch.training.collapse import CollapseDetector
from selfpatch.training.progress import ProgressBar, Throughput
from selfpatch.training.signals import StopSignals


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def progress(terminal: bool, enabled: bool = True) -> tuple[ProgressBar, io.StringIO, Clock]:
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, force_terminal=terminal, width=150)
    return ProgressBar(100, batch_size=64, enabled=enabled, console=console, clock=clock), out, clock


def update(bar: ProgressBar, step: int, images_per_second: float = 32.0) -> None:
    bar.update(step, epoch=3, images_per_second=images_per_second, losses={"image": 8.12345, "patch": 7.0}, lr=5e-4)


class TestProgressBar:
    def test_plain_lines_where_there_is_no_terminal(self) -> None:
        bar, out, clock = progress(terminal=False)
        with bar:
            for step in range(1, 101):
                update(bar, step)
                clock.now += 1
        lines = out.getvalue().splitlines()
        assert lines[0] == "epoch 3  step 1/100  32 images/s  ETA 0:03:18  image 8.123  patch 7  lr 5.00e-04"
        assert [line.split("step ")[1].split("/")[0] for line in lines] == ["1", "31", "61", "91", "100"]

    def test_a_bar_on_a_terminal(self) -> None:
        bar, out, _ = progress(terminal=True)
        with bar:
            update(bar, 50)
            bar.say("[bold] warning")
        shown = out.getvalue()
        for part in ("epoch 3", "50/100", "32 images/s", "ETA 0:01:40", "image 8.123", "lr 5.00e-04", "[bold] warning"):
            assert part in shown

    @pytest.mark.parametrize("terminal", [True, False])
    def test_other_ranks_say_nothing(self, terminal: bool) -> None:
        bar, out, _ = progress(terminal, enabled=False)
        with bar:
            update(bar, 100)
            bar.say("warning")
        assert out.getvalue() == ""

    def test_no_speed_yet_and_losses_that_are_not_finite(self) -> None:
        bar, out, _ = progress(terminal=False)
        bar.update(1, epoch=1, images_per_second=0.0, losses={"image": math.nan}, lr=0.0)
        assert out.getvalue() == "epoch 1  step 1/100  0.00 images/s  image nan  lr 0.00e+00\n"


class TestSpeed:
    def test_the_window_moves_on(self) -> None:
        clock = Clock()
        speed = Throughput(window=4, clock=clock)
        assert speed.images_per_second == 0
        clock.now += 100  # compilation
        speed.add(10)
        assert speed.images_per_second == pytest.approx(0.1)
        for _ in range(4):
            clock.now += 2
            speed.add(10)
        assert speed.images_per_second == pytest.approx(5)

    def test_pauses_do_not_count(self) -> None:
        clock = Clock()
        speed = Throughput(clock=clock)
        for _ in range(5):
            clock.now += 1
            speed.add(8)
            with speed.pause():
                clock.now += 50
        assert speed.images_per_second == pytest.approx(8)

    def test_a_pause_ends_with_an_error(self) -> None:
        clock = Clock()
        speed = Throughput(clock=clock)
        with contextlib.suppress(RuntimeError), speed.pause():
            clock.now += 50
            raise RuntimeError
        clock.now += 1
        speed.add(8)
        assert speed.images_per_second == pytest.approx(8)


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


HEALTHY = {"entropy": 2.0, "mean_entropy": 6.0, "max_entropy": math.log(4096), "effective_rank": 40.0}


class TestCollapseWatch:
    @pytest.mark.parametrize(
        ("bad", "words"),
        [
            ({"entropy": 8.31, "mean_entropy": 8.315}, ["uniform", "lower optimizer.teacher_temp"]),
            ({"entropy": 0.001, "mean_entropy": 0.002}, ["same prototype", "higher optimizer.teacher_temp"]),
            ({"effective_rank": 1.02}, ["one direction", "effective rank 1.02", "optimizer.base_lr"]),
        ],
    )
    def test_one_warning_a_kind_after_several_logs_in_a_row(self, bad: dict[str, float], words: list[str]) -> None:
        watch = CollapseDetector(first_step=100, patience=3)
        assert [watch.check(step, HEALTHY | bad) for step in range(0, 100, 10)] == [None] * 10
        assert [watch.check(step, HEALTHY | bad) for step in (100, 110)] == [None, None]
        assert watch.check(120, HEALTHY) is None  # one good log starts the count again
        answers = [watch.check(step, HEALTHY | bad) for step in range(130, 200, 10)]
        warning = answers[2]
        assert warning is not None
        assert all(word in warning for word in words)
        assert [answer for answer in answers if answer] == [warning]

    def test_kinds_warn_apart(self) -> None:
        watch = CollapseDetector(first_step=0, patience=1)
        first = watch.check(0, HEALTHY | {"effective_rank": 1.0})
        second = watch.check(1, HEALTHY | {"effective_rank": 1.0, "mean_entropy": 0.0})
        assert first is not None
        assert "direction" in first
        assert second is not None
        assert "prototype" in second
        assert "direction" not in second

    def test_meters_that_are_missing_or_not_finite_are_no_sign(self) -> None:
        watch = CollapseDetector(first_step=0, patience=1)
        assert watch.check(0, {}) is None
        assert watch.check(1, dict.fromkeys(HEALTHY, math.nan)) is None
        assert watch.check(2, {"loss": 0.0, "effective_rank": 30.0}) is None

    def test_the_settings_it_names_exist(self) -> None:
        watch = CollapseDetector(first_step=0, patience=1)
        bad = {"entropy": 8.3, "mean_entropy": 0.0, "max_entropy": 8.3, "effective_rank": 1.0}
        names = re.findall(r"optimizer\.(\w+)", watch.check(0, bad) or "")
        assert len(names) >= 5
        assert all(hasattr(RunConfig().optimizer, name) for name in names)
