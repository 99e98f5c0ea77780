"""Progress bar and throughput of a running training."""

from __future__ import annotations

import contextlib
import datetime
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


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


class Throughput:
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
