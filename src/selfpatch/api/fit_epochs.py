"""The number of epochs that fits into a run's time limit."""

import contextlib
import copy
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from selfpatch.config.run import RunConfig
from selfpatch.core import distributed
from selfpatch.core.machine import autocast_dtype
from selfpatch.core.text import counted
from selfpatch.training import factory
from selfpatch.training.dataset import TrainingData
from selfpatch.training.optim import Schedule
from selfpatch.training.parallel import whole_teacher
from selfpatch.training.step_timing import Speed, measure_speed, steps_that_fit, timed_steps
from selfpatch.training.student_teacher import StudentTeacher
from selfpatch.training.trainer import evaluation_steps

SPARE = 0.07
"""Share of the time that is kept for the start of Python, the report, and steps that are slower than those measured."""
MEASURED = 0.03
"""Share of the time in which steps are measured."""
MAX_MEASURED = 1000
"""Largest number of steps that are measured."""
MAX_MEASURED_SECONDS = 60.0
"""Time after which more steps would tell little more."""


def fit_epochs(
    config: RunConfig, student_teacher: StudentTeacher, data: TrainingData, device: torch.device, started: float
) -> tuple[RunConfig, list[str]]:
    """Return the settings with the epochs that fit into `config.minutes` in its place, and lines that say so.

    A copy of the network is evaluated once and takes the first steps, so that the run itself stays as it is. All
    processes return the same.

    Args:
        config: settings with `minutes`.
        student_teacher: the network of the run.
        data: its images.
        device: its device.
        started: `time.monotonic()` at the start of the run.

    Raises:
        ValueError: not even one step fits.
    """
    assert config.minutes is not None
    seconds = 60 * config.minutes
    limit = min(MEASURED * seconds, MAX_MEASURED_SECONDS)
    evaluation, speed, schedule = _measure(config, copy.deepcopy(student_teacher), data, device, limit)
    per_epoch, most = schedule.steps_per_epoch, None if config.epochs is None else schedule.total_steps

    def num_evaluations(steps: int) -> int:
        # The images are read once more, and the sheet of before and after has two networks.
        return len(evaluation_steps(config.watch, per_epoch, steps)) + 2

    left = (1 - SPARE) * seconds - (time.monotonic() - started)
    steps = steps_that_fit(left, speed, evaluation, num_evaluations, most)
    steps = int(distributed.broadcast_from_main(str(steps)))
    if steps < 1:
        short = speed.start_up + speed.per_step + evaluation * num_evaluations(1) - left
        enough = math.ceil((seconds + short / (1 - SPARE)) / 6) / 10  # in tenths of a minute, upwards
        raise ValueError(
            f"minutes is {config.minutes:g}, in which no step fits: an evaluation takes {evaluation:.1f} s, a step "
            f"{speed.per_step:.1f} s, and {seconds - left:.0f} s are gone or kept in reserve; allow at least "
            f"{enough:g} minutes"
        )
    rate = f"{config.batch_size / speed.per_step:.3g} images/s"
    if config.epochs is not None and steps == most:
        return replace(config, minutes=None), [
            f"all {counted(config.epochs, 'epoch', 'g')} fit into {counted(config.minutes, 'minute', 'g')} at {rate}"
        ]
    fitted = replace(config, epochs=steps / per_epoch, minutes=None)
    return fitted, [f"{counted(steps, 'step')} fit into {counted(config.minutes, 'minute', 'g')} at {rate}"]


def _measure(
    config: RunConfig, student_teacher: StudentTeacher, data: TrainingData, device: torch.device, limit: float
) -> tuple[float, Speed, Schedule]:
    """Return the seconds of an evaluation, the speed of steps, and the schedule up to the largest number of epochs."""
    factory.move_to_device(config, student_teacher, device)
    loader = factory.make_loader(config, student_teacher, data, device)
    schedule = factory.make_schedule(config, loader.steps_per_epoch)
    evaluation = 0.0
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        before, teacher = time.monotonic(), whole_teacher(student_teacher)
        if teacher is not None:
            with tempfile.TemporaryDirectory() as pictures:
                evaluate = factory.make_online_evaluator(config, student_teacher, data, Path(pictures))
                evaluate(teacher.eval(), 0)
            evaluation = time.monotonic() - before
        steps = timed_steps(
            student_teacher,
            loader,
            schedule,
            factory.make_optimizer(config, student_teacher),
            device=device,
            autocast=autocast_dtype(config.precision, device),
            count=MAX_MEASURED if config.epochs is None else min(MAX_MEASURED, max(2, schedule.total_steps)),
        )
        with contextlib.closing(steps):
            return evaluation, measure_speed(steps, limit), schedule
