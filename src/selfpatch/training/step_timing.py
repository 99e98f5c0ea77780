"""Seconds of training steps, and the number of steps that fits into a time."""

import bisect
import contextlib
import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass

import torch

from selfpatch.core import distributed
from selfpatch.data.loader import CropLoader
from selfpatch.data.prefetch import prefetched
from selfpatch.training.optim import Schedule
from selfpatch.training.parallel import data_parallel
from selfpatch.training.student_teacher import StudentTeacher
from selfpatch.training.trainer import training_step

WARM_UP = 3
"""Number of first steps that start workers, fill caches and compile, so that they do not tell the speed."""


def timed_steps(
    student_teacher: StudentTeacher,
    loader: CropLoader,
    schedule: Schedule,
    optimizer: torch.optim.Optimizer,
    *,
    device: torch.device,
    autocast: torch.dtype | None,
    count: int,
    with_loading: bool = True,
    clock: Callable[[], float] | None = None,
) -> Generator[float]:
    """Take the first `count` steps of a training, and yield the seconds of each.

    Arguments are as for `trainer.train`. Nothing is logged or saved. The wait for images counts if `with_loading`.
    `clock` returns seconds; None is the wall clock. Close the generator if it is not read to its end.
    """
    clock = clock or time.perf_counter
    model = data_parallel(student_teacher.train())
    with contextlib.closing(prefetched(loader.steps(0, count), device)) as batches:
        for step in range(count):
            started = clock()
            views = next(batches)
            if not with_loading:
                started = clock()
            hp = schedule(min(step, schedule.total_steps - 1))  # the training may be shorter
            training_step(model, views, optimizer, hp, schedule.config, autocast=autocast)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            yield clock() - started


@dataclass(frozen=True)
class Speed:
    """Speed of a training."""

    start_up: float
    """Seconds by which the first steps take longer than later ones together."""
    per_step: float
    """Seconds of a later step."""


def measure_speed(seconds: Iterable[float], limit: float) -> Speed:
    """Return the speed from the seconds of steps; read no more of them once those after the first exceed `limit`.

    All processes read the same number of steps, which are at least two.
    """
    times: list[float] = []
    for spent in seconds:
        times.append(spent)
        (enough,) = distributed.any_rank(len(times) > 1 and sum(times[1:]) > limit)
        if enough:
            break
    num_first = min(WARM_UP, len(times) - 1)
    first, later = times[:num_first], times[num_first:]
    per_step = sum(later) / len(later)
    return Speed(max(0.0, sum(first) - num_first * per_step), per_step)


def steps_that_fit(
    seconds: float,
    speed: Speed,
    evaluation: float,
    num_evaluations: Callable[[int], int],
    most: int | None = None,
) -> int:
    """Return the largest number of steps, up to `most`, that fits into a time together with evaluations, or 0.

    An evaluation takes `evaluation` seconds, and a training of n steps has `num_evaluations(n)` of them, which must not
    decrease with n.
    """

    def cost(steps: int) -> float:
        return speed.start_up + steps * speed.per_step + evaluation * num_evaluations(steps)

    largest = max(0, int(seconds / speed.per_step))
    return bisect.bisect_right(range(1, (largest if most is None else min(most, largest)) + 1), seconds, key=cost)
