"""How many epochs of one arm take as long as an epoch of another, so that both can be given the same time."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from selfpatch.config.run import RunConfig
from selfpatch.core import distributed
from selfpatch.core.atomic_io import write_atomically
from selfpatch.core.precision import autocast_dtype
from selfpatch.data.prefetch import prefetched
from selfpatch.experiments.jobs import Place, loader_workers
from selfpatch.experiments.spec import Arm, Study
from selfpatch.training.factory import (
    make_loader,
    make_optimizer,
    make_schedule,
    make_student_teacher,
    move_to_device,
    open_training_data,
    with_renderer,
)
from selfpatch.training.trainer import training_step

COSTS = "costs.json"
"""In the folder of a study. An entry an arm: what was timed, and the seconds of an epoch of the other arm over those of
its own."""
WARM_UP, STEPS = 3, 12
"""Steps that are not timed, and those that are."""


def equal_time_epochs(study: Study, file: Path) -> dict[str, float]:
    """The epochs of the arms that take as long as another one, by name, as far as they were timed."""
    ratios = {arm.name: ratio for arm in study.arms if (ratio := kept_ratio(study, arm, file)) is not None}
    epochs = {arm.name: study.arm(arm.equal_time).config.epochs for arm in study.arms if arm.equal_time is not None}
    return {name: round(epochs[name] * ratio, 3) for name, ratio in ratios.items()}


def untimed(study: Study, file: Path) -> list[Arm]:
    """The arms that are yet to be timed beside another one."""
    return [arm for arm in study.arms if arm.equal_time is not None and kept_ratio(study, arm, file) is None]


def kept_ratio(study: Study, arm: Arm, file: Path) -> float | None:
    """What was timed of an arm with its present settings, and those of the other one; None: nothing."""
    entry = _entries(file).get(arm.name)
    if arm.equal_time is None or not isinstance(entry, dict) or entry.get("timed") != _timed(study, arm):
        return None
    return float(entry["ratio"])


def time_arm(arm: Arm, place: Place, *, study: Study, data: str, file: Path) -> list[str]:
    """Times an arm beside the other one, and keeps what came of it: a study that goes on must not time them anew, or
    its numbers would depend on where it was stopped.
    """
    assert arm.equal_time is not None
    torch.set_num_threads(place.threads)
    configs = [replace(each.config, data=data) for each in (arm, study.arm(arm.equal_time))]
    own, other = epoch_seconds(configs, place)
    entry = {"timed": _timed(study, arm), "ratio": other / own}
    write_atomically(file, json.dumps({**_entries(file), arm.name: entry}, indent=1) + "\n")
    return []


def _timed(study: Study, arm: Arm) -> Any:
    """What decides the time of an epoch, as JSON gives it back."""
    assert arm.equal_time is not None
    configs = (arm.config, study.arm(arm.equal_time).config)
    return [{k: v for k, v in config.to_dict().items() if k != "epochs"} for config in configs]


def _entries(file: Path) -> Mapping[str, Any]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return entries if isinstance(entries, dict) else {}


def epoch_seconds(configs: Sequence[RunConfig], place: Place) -> list[float]:
    """Seconds of an epoch of each run, by the median of its steps; steps of all take turns, so that whatever else the
    machine does meets all alike.
    """
    device = distributed.start(place.device)
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(contextlib.closing(_steps(config, place, device))) for config in configs]
        epochs = [next(run) for run in runs]  # the steps of each
        rounds = [[next(run) for run in runs] for _ in range(WARM_UP + STEPS)]
    return [n * median(times) for n, times in zip(epochs, zip(*rounds[WARM_UP:], strict=True), strict=True)]


def _steps(config: RunConfig, place: Place, device: torch.device) -> Generator[float]:
    """Trains as a job does, and gives first the steps of an epoch, then the seconds of each step. Where other processes
    load the images, only the step itself counts: they work on while the other run has its turn.
    """
    workers = loader_workers(config, place)
    config = with_renderer(replace(config, loader=replace(config.loader, workers=workers)), device)
    student_teacher = move_to_device(config, make_student_teacher(config)[0], device).train()
    loader = make_loader(config, student_teacher, open_training_data(config), device)
    schedule, optimizer = make_schedule(config, loader.steps_per_epoch), make_optimizer(config, student_teacher)
    autocast = autocast_dtype(config.precision, device)
    yield loader.steps_per_epoch
    with contextlib.closing(prefetched(loader.steps(0, WARM_UP + STEPS), device)) as batches:
        for step in range(WARM_UP + STEPS):
            started = time.perf_counter()
            views = next(batches)
            if workers:
                started = time.perf_counter()
            training_step(student_teacher, views, optimizer, schedule(step), config.optimizer, autocast=autocast)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            yield time.perf_counter() - started
