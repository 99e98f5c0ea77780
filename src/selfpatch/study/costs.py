"""What a training step of each arm costs, so that two arms can be given the same time."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch

from selfpatch import distributed
from selfpatch.build import (
    make_clipping,
    make_loader,
    make_loop_settings,
    make_optimizer,
    make_pretrainer,
    make_schedule,
    with_renderer,
)
from selfpatch.config import RunConfig
from selfpatch.files import write_atomically
from selfpatch.pretraining import training_step
from selfpatch.study.plan import Study
from selfpatch.training_data import open_data

COSTS = "costs.json"
"""In the folder of a study."""
WARM_UP, STEPS = 3, 12
"""Steps that are not timed, and those that are."""


def equal_time_epochs(study: Study, data: str, device: str, file: Path) -> dict[str, float]:
    """The epochs of the arms that take as long as another one, by name.

    The steps are timed once, before anything is trained, and kept in `file`: a study that goes on must not time them
    anew, or its numbers would depend on where it was stopped.
    """
    pairs = {arm.name: arm.equal_time for arm in study.arms if arm.equal_time is not None}
    names = list(dict.fromkeys([*pairs, *pairs.values()]))
    seconds = kept_seconds(file)
    if not set(names) <= set(seconds):
        configs = [replace(study.arm(name).config, data=data) for name in names]
        seconds = dict(zip(names, step_seconds(configs, distributed.start(device)), strict=True))
        write_atomically(file, json.dumps(seconds, indent=1) + "\n")
    return {
        name: round(study.arm(other).config.epochs * seconds[other] / seconds[name], 3) for name, other in pairs.items()
    }


def kept_seconds(file: Path) -> Mapping[str, float]:
    """Of a step of each arm that was timed."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def step_seconds(configs: Sequence[RunConfig], device: torch.device) -> list[float]:
    """The median time of a step of each run, its images loaded in the same process; steps of all take turns, so that
    whatever else the machine does meets all alike."""
    runs = [_steps(config, device) for config in configs]
    rounds = [[next(run) for run in runs] for _ in range(WARM_UP + STEPS)]
    return [median(times) for times in zip(*rounds[WARM_UP:], strict=True)]


def _steps(config: RunConfig, device: torch.device) -> Iterator[float]:
    """Trains, and gives the seconds of each step."""
    config = with_renderer(replace(config, loader=replace(config.loader, workers=0)), device)
    data = open_data(config)
    pretrainer, _ = make_pretrainer(config)
    pretrainer.to(device).train()
    loader = make_loader(config, pretrainer, data.index, data.places, device)
    schedule, optimizer = make_schedule(config, loader.steps_per_epoch), make_optimizer(config, pretrainer)
    autocast, clipping = make_loop_settings(config, device).autocast, make_clipping(config)
    batches = loader.steps(0, WARM_UP + STEPS)
    for step in range(WARM_UP + STEPS):
        started = time.perf_counter()
        views = [batch.to(device) for batch in next(batches)]
        training_step(pretrainer, views, optimizer, schedule(step), clipping=clipping, autocast=autocast)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        yield time.perf_counter() - started
