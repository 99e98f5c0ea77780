"""Timing of arms: how many epochs of one arm take as long as an epoch of another one."""

import contextlib
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from selfpatch.config.run import RunConfig
from selfpatch.core import distributed
from selfpatch.core.machine import autocast_dtype
from selfpatch.experiments.jobs import WorkerSlot, loader_workers, run_settings, stored_run_settings, training_data
from selfpatch.experiments.records import read_json, write_json
from selfpatch.experiments.spec import Arm, Study
from selfpatch.training import factory
from selfpatch.training.step_timing import WARM_UP, timed_steps

TIMING_FILE = "timing.json"
"""File in the folder of a study. For each arm: the timed settings, and the epoch time of the other arm over its own."""
STEPS = 12
"""Number of timed steps after those of the warm-up."""


def equal_time_epochs(study: Study, file: Path) -> dict[str, float]:
    """Return the epochs of the arms with equal training time, by name, as far as they are timed."""
    ratios = stored_ratios(study, file)
    timed = [arm for arm in study.arms if arm.name in ratios]
    return {arm.name: round(study.timed_against(arm).epochs * ratios[arm.name], 3) for arm in timed}


def untimed(study: Study, file: Path) -> list[Arm]:
    """Return the arms that still have to be timed against another one."""
    ratios = stored_ratios(study, file)
    return [arm for arm in study.arms if arm.equal_time is not None and arm.name not in ratios]


def stored_ratios(study: Study, file: Path) -> dict[str, float]:
    """Return the ratio of epoch times of each arm that is timed with the present settings of both arms, by name."""
    entries, ratios = _entries(file), {}
    for arm in study.arms:
        entry = entries.get(arm.name)
        if arm.equal_time is None or not isinstance(entry, dict) or not isinstance(entry.get("timed"), list):
            continue
        timed = [stored_run_settings(each, file) for each in entry["timed"]]
        if _without_epochs(timed) == _timed(study, arm):
            ratios[arm.name] = float(entry["ratio"])
    return ratios


def time_arm(arm: Arm, slot: WorkerSlot, *, study: Study, out: Path) -> list[str]:
    """Time an arm against its other arm and store the ratio.

    A study that continues must not time arms again, or its numbers would depend on where it was stopped.
    """
    torch.set_num_threads(slot.threads)
    arms, file = (arm, study.timed_against(arm)), out / TIMING_FILE
    configs = [replace(each.config, data=training_data(each.pretrain, out)) for each in arms]
    seconds, other_seconds = epoch_seconds(configs, slot)
    entry = {"timed": _timed(study, arm), "ratio": other_seconds / seconds}
    write_json(file, {**_entries(file), arm.name: entry})
    return []


def _timed(study: Study, arm: Arm) -> Any:
    """Return the settings that decide the time of an epoch, as JSON gives them back."""
    return _without_epochs([run_settings(arm.config), run_settings(study.timed_against(arm).config)])


def _without_epochs(runs: Sequence[Any]) -> list[Any]:
    return [{k: v for k, v in run.items() if k != "epochs"} if isinstance(run, Mapping) else run for run in runs]


def _entries(file: Path) -> Mapping[str, Any]:
    entries = read_json(file)
    return entries if isinstance(entries, dict) else {}


def epoch_seconds(configs: Sequence[RunConfig], slot: WorkerSlot) -> list[float]:
    """Return the seconds of an epoch of each run, from the median of its steps.

    The runs take turns step by step, so that other load on the machine affects all of them alike. On one CPU thread
    processor time is measured, which other load hardly changes.
    """
    device = distributed.start(slot.device)
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(contextlib.closing(_steps(config, slot, device))) for config in configs]
        steps_per_epoch = [next(run) for run in runs]
        rounds = [[next(run) for run in runs] for _ in range(WARM_UP + STEPS)]
    return [n * median(times) for n, times in zip(steps_per_epoch, zip(*rounds[WARM_UP:], strict=True), strict=True)]


def _steps(config: RunConfig, slot: WorkerSlot, device: torch.device) -> Generator[float]:
    """Train as a job does; yield the number of steps in an epoch, then the seconds of each step.

    If loader processes load the images, only the step itself is timed, as they load during the turn of the other run.
    """
    workers = loader_workers(config, slot)
    config = factory.with_renderer(replace(config, loader=replace(config.loader, workers=workers)), device)
    student_teacher = factory.move_to_device(config, factory.make_student_teacher(config)[0], device)
    loader = factory.make_loader(config, student_teacher, factory.open_training_data(config), device)
    schedule = factory.make_schedule(config, loader.steps_per_epoch)
    optimizer = factory.make_optimizer(config, student_teacher)
    yield loader.steps_per_epoch
    yield from timed_steps(
        student_teacher,
        loader,
        schedule,
        optimizer,
        device=device,
        autocast=autocast_dtype(config.precision, device),
        count=WARM_UP + STEPS,
        with_loading=not workers,
        clock=time.process_time if device.type == "cpu" and slot.threads == 1 else None,
    )
