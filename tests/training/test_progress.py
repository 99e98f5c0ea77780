"""Progress bar and throughput."""

from __future__ import annotations

import contextlib
import io
import math

import pytest
from rich.console import Console

from selfpatch.training.progress import ProgressBar, Throughput, describe_metrics


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


class TestThroughput:
    def test_the_window_moves_on(self) -> None:
        clock = Clock()
        throughput = Throughput(window=4, clock=clock)
        assert throughput.images_per_second == 0
        clock.now += 100  # compilation
        throughput.add(10)
        assert throughput.images_per_second == pytest.approx(0.1)
        for _ in range(4):
            clock.now += 2
            throughput.add(10)
        assert throughput.images_per_second == pytest.approx(5)

    def test_pauses_do_not_count(self) -> None:
        clock = Clock()
        throughput = Throughput(clock=clock)
        for _ in range(5):
            clock.now += 1
            throughput.add(8)
            with throughput.pause():
                clock.now += 50
        assert throughput.images_per_second == pytest.approx(8)

    def test_a_pause_ends_with_an_error(self) -> None:
        clock = Clock()
        throughput = Throughput(clock=clock)
        with contextlib.suppress(RuntimeError), throughput.pause():
            clock.now += 50
            raise RuntimeError
        clock.now += 1
        throughput.add(8)
        assert throughput.images_per_second == pytest.approx(8)


def test_an_evaluation_is_described_with_its_baselines() -> None:
    at_start = {"step": 0, "view_matching": 0.2, "view_matching_mean_colour": 0.15}
    line = describe_metrics({"view_matching": 0.25, "knn_top1": 0.5}, at_start, "untrained", 30)
    assert line == "step 30: view matching 25.0 % (untrained 20.0, mean colour 15.0)  knn top1 50.0 %"
