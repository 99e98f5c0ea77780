"""What a person sees of a running training, and how they stop it: progress, speed, signals, warnings of collapse."""

from __future__ import annotations

import contextlib
import datetime
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, Literal

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch import Tensor


class ProgressBar:
    """A bar on a terminal, a plain line now and then elsewhere, nothing where not `enabled` (ranks but the main one).

    Args:
        total_steps: steps of the whole run.
        batch_size: images a step, over all processes; the time left is worked out from it.
        enabled: False prints nothing at all.
        plain_every: seconds between two lines where the output is no terminal.
        console, clock: where to print and what time it is; other ones are for tests.
    """

    def __init__(
        self,
        total_steps: int,
        batch_size: int,
        *,
        enabled: bool = True,
        plain_every: float = 30.0,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._enabled = enabled
        self._plain_every = plain_every
        self._console = console or Console()
        self._clock = clock
        self._printed_at = -math.inf
        self._live = enabled and self._console.is_terminal
        self._progress = Progress(
            TextColumn("{task.fields[epoch]}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            console=self._console,
            expand=True,
        )
        self._task = self._progress.add_task("", total=total_steps, epoch="", numbers="")

    def __enter__(self) -> ProgressBar:
        if self._live:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._progress.stop()

    def update(
        self, step: int, *, epoch: int, images_per_second: float, losses: Mapping[str, float], lr: float
    ) -> None:
        """Shows how things stand with `step` steps done, in epoch `epoch` counted from 1."""
        if not self._enabled:
            return
        numbers = self._numbers(step, images_per_second, losses, lr)
        if self._live:
            self._progress.update(self._task, completed=step, epoch=f"epoch {epoch}", numbers=numbers)
        elif self._clock() - self._printed_at >= self._plain_every or step >= self._total_steps:
            self._printed_at = self._clock()
            self.say(f"epoch {epoch}  step {step}/{self._total_steps}  {numbers}")

    def say(self, text: str) -> None:
        """Prints a line of its own, above the bar where there is one."""
        if self._enabled:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _numbers(self, step: int, images_per_second: float, losses: Mapping[str, float], lr: float) -> str:
        left = (self._total_steps - step) * self._batch_size
        digits = 0 if images_per_second >= 10 else 2
        parts = [f"{images_per_second:.{digits}f} images/s"]
        if images_per_second > 0:
            parts.append(f"ETA {datetime.timedelta(seconds=math.ceil(left / images_per_second))}")
        parts += [f"{name} {value:.4g}" for name, value in losses.items()]
        return "  ".join([*parts, f"lr {lr:.2e}"])


class Speed:
    """Images a second over the last `window` steps, pauses left out.

    Args:
        window: steps; compilation and other costs of the first ones leave the number after so many.
        clock: seconds; another one is for tests.
    """

    def __init__(self, window: int = 50, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._paused = 0.0
        self._images = 0
        # After each step: (time without pauses, images so far).
        self._marks = deque([(self._now(), 0)], maxlen=window + 1)

    def _now(self) -> float:
        return self._clock() - self._paused

    def add(self, images: int) -> None:
        """Counts one step, just done, of so many images (over all processes)."""
        self._images += images
        self._marks.append((self._now(), self._images))

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Time spent inside, evaluating or saving, does not count."""
        begin = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - begin

    @property
    def images_per_second(self) -> float:
        """0 before the first step."""
        (begin, images_before), (end, images) = self._marks[0], self._marks[-1]
        return (images - images_before) / (end - begin) if end > begin else 0.0


class Verdict:
    """A flag of the device that can be read later: on CUDA one then waits for what made it, not for what came since.

    Args:
        flag: a bool scalar.
    """

    def __init__(self, flag: Tensor) -> None:
        self._flag = flag.to("cpu", non_blocking=True) if flag.is_cuda else flag
        self._there = torch.cuda.current_stream(flag.device).record_event() if flag.is_cuda else None

    def __bool__(self) -> bool:
        if self._there is not None:
            self._there.synchronize()
        return bool(self._flag)


class Failures:
    """Counts the steps in a row that were not taken.

    A step is judged when the next one is on its way, so that the device always has work. Where one more failure would
    be one too many it is judged at once, while the state is still that of the step.

    Args:
        most: so many are too many; 1 waits for every step.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_a_row = 0
        self._pending: Verdict | None = None

    def too_many(self, taken: Verdict) -> bool:
        """Takes in the step that is now on its way; whether it was one failure too many."""
        self._judge()
        self._pending = taken
        if self._in_a_row + 1 >= self._most:
            self._judge()
        return self._in_a_row >= self._most

    def _judge(self) -> None:
        if self._pending is not None:
            self._in_a_row = 0 if self._pending else self._in_a_row + 1
        self._pending = None


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


Collapse = Literal["uniform", "one prototype", "rank"]


class CollapseWatch:
    """Turns the meters of `ops.collapse` into one warning for each kind of collapse, with what to do about it.

    Args:
        first_step: meters of earlier steps are not looked at: an untrained network looks collapsed.
        patience: how many times in a row a meter must be bad before there is a warning.
    """

    def __init__(self, first_step: int, patience: int = 3) -> None:
        self._first_step = first_step
        self._patience = patience
        self._in_a_row: dict[Collapse, int] = {"uniform": 0, "one prototype": 0, "rank": 0}
        self._warned: set[Collapse] = set()

    def check(self, step: int, meters: Mapping[str, float]) -> str | None:
        """A warning, or None. Called at each log.

        Args:
            meters: `entropy`, `mean_entropy` and `max_entropy` as from `distribution_meters`, and `effective_rank`;
                those that a method has not are left out, and others are not looked at.
        """
        if step < self._first_step:
            return None
        signs = _signs(meters)
        for kind in self._in_a_row:
            self._in_a_row[kind] = self._in_a_row[kind] + 1 if kind in signs else 0
        due = [kind for kind in signs if self._in_a_row[kind] >= self._patience and kind not in self._warned]
        self._warned.update(due)
        return " ".join(signs[kind] for kind in due) or None


def _signs(meters: Mapping[str, float]) -> dict[Collapse, str]:
    """The kinds of collapse that these meters show, each with its warning."""
    entropy, mean_entropy = meters.get("entropy", math.nan), meters.get("mean_entropy", math.nan)
    max_entropy, rank = meters.get("max_entropy", math.nan), meters.get("effective_rank", math.nan)
    signs: dict[Collapse, str] = {}
    # Comparisons with NaN, a meter that is not there, are False.
    if entropy > 0.99 * max_entropy:
        signs["uniform"] = (
            f"The teacher has collapsed to uniform distributions (entropy {entropy:.2f} of {max_entropy:.2f} nats) and "
            "teaches nothing: sharpen it with a lower optimizer.teacher_temp, or lower optimizer.base_lr."
        )
    if mean_entropy < 0.1:
        signs["one prototype"] = (
            "The teacher gives every image the same prototype (entropy of the mean distribution "
            f"{mean_entropy:.3f} nats): soften it with a higher optimizer.teacher_temp, or raise "
            "optimizer.freeze_last_layer_epochs."
        )
    if rank < 1.5:
        signs["rank"] = (
            f"The features have collapsed to one direction (effective rank {rank:.2f}): lower optimizer.base_lr or "
            "raise optimizer.warmup_epochs, and check that the images differ."
        )
    return signs


class FeatureGuard:
    """Says when training spoils what the initial weights were good at.

    Args:
        at_start: the metrics of the initial weights; more is better.
        tolerance: a metric may fall by so much, in its own unit, without a word.
    """

    def __init__(self, at_start: Mapping[str, float], tolerance: float = 0.02) -> None:
        self._at_start, self._tolerance = dict(at_start), tolerance

    def check(self, metrics: Mapping[str, float]) -> str | None:
        """A warning that names what fell, or None. Called at each measurement."""
        fallen = [
            f"{name} from {before:.3f} to {metrics[name]:.3f}"
            for name, before in self._at_start.items()
            if name in metrics and metrics[name] < before - self._tolerance
        ]
        if not fallen:
            return None
        return (
            f"The objective fights the initial features: {', '.join(fallen)}. Lower optimizer.base_lr, raise "
            "backbone.frozen_blocks or optimizer.freeze_backbone_epochs, or lower the weight of the loss that "
            "fights them."
        )
