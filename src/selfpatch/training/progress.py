"""Progress bar, throughput and the line that describes an evaluation."""

import contextlib
import datetime
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from selfpatch.core.console import PlainConsole
from selfpatch.core.text import visible


class ProgressBar:
    """A bar on a terminal, and a plain line every `plain_every` seconds elsewhere.

    The remaining time follows from `batch_size`, the number of images in a step over all processes. Nothing is printed
    unless `enabled`, as on the main process. Tests pass their own console, and a clock that returns seconds.
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
        self._total_steps, self._batch_size = total_steps, batch_size
        self._enabled, self._plain_every = enabled, plain_every
        self._console, self._clock = console or PlainConsole(), clock
        self._printed_at = -math.inf
        self._live = enabled and self._console.is_terminal
        columns = (
            TextColumn("{task.fields[epoch]}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
        )
        self._progress = Progress(*columns, console=self._console, expand=True)
        self._task = self._progress.add_task("", total=total_steps, epoch="", numbers="")

    def __enter__(self) -> "ProgressBar":
        if self._live:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._progress.stop()

    def update(
        self, step: int, *, epoch: int, images_per_second: float, losses: Mapping[str, float], lr: float
    ) -> None:
        """Show the state after `step` steps, in epoch `epoch` counted from 1."""
        if not self._enabled:
            return
        parts = [f"{images_per_second:.{0 if images_per_second >= 10 else 2}f} images/s"]
        if images_per_second > 0:
            seconds_left = (self._total_steps - step) * self._batch_size / images_per_second
            parts.append(f"ETA {datetime.timedelta(seconds=math.ceil(seconds_left))}")
        parts += [f"{name} {value:.4g}" for name, value in losses.items()]
        numbers = "  ".join([*parts, f"lr {lr:.2e}"])
        if self._live:
            self._progress.update(self._task, completed=step, epoch=f"epoch {epoch}", numbers=numbers)
        elif self._clock() - self._printed_at >= self._plain_every or step >= self._total_steps:
            self._printed_at = self._clock()
            self.say(f"epoch {epoch}  step {step}/{self._total_steps}  {numbers}")

    def say(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if self._enabled:
            self._console.print(visible(text), markup=False, highlight=False, soft_wrap=True)

    def warn(self, *warnings: str | None) -> None:
        """Print the warnings that are not None, a line each."""
        for warning in warnings:
            if warning is not None:
                self.say(f"warning: {warning}")


class Throughput:
    """Images per second over the last `window` steps, without pauses; compilation leaves it after as many steps."""

    def __init__(self, window: int = 50, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._paused = 0.0
        self._images = 0
        # After each step: (time without pauses, images so far).
        self._marks = deque([(self._now(), 0)], maxlen=window + 1)

    def _now(self) -> float:
        return self._clock() - self._paused

    def add(self, images: int) -> None:
        """Count a step that has just ended, with its number of images over all processes."""
        self._images += images
        self._marks.append((self._now(), self._images))

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out the time spent inside, which evaluates or saves."""
        begin = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - begin

    @property
    def images_per_second(self) -> float:
        """The throughput, 0 before the first step."""
        (begin, images_before), (end, images) = self._marks[0], self._marks[-1]
        return (images - images_before) / (end - begin) if end > begin else 0.0


def describe_metrics(metrics: Mapping[str, float], at_start: Mapping[str, float], start: str, done: int) -> str:
    """Return one line with each metric after `done` steps in percent, in brackets its value at step 0 and baselines.

    `at_start` is the record of step 0, `start` names the network then. Names of baselines begin with their metric's.
    """
    parts = []
    for name, value in metrics.items():
        earlier = {key.removeprefix(name).strip("_") or start: v for key, v in at_start.items() if key.startswith(name)}
        baselines = ", ".join(f"{words.replace('_', ' ')} {100 * share:.1f}" for words, share in earlier.items())
        parts.append(f"{name.replace('_', ' ')} {100 * value:.1f} %" + (f" ({baselines})" if baselines else ""))
    return f"step {done}: {'  '.join(parts)}"
