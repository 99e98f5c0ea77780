"""Benchmark of a whole training: images read, rendered and learned from, as `selfpatch pretrain` does it."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping
from itertools import count
from time import perf_counter
from typing import Any

import torch

from benchmarks.step import crops_of
from benchmarks.timing import Timing, wait_for_device
from selfpatch.config.run import RunConfig
from selfpatch.core.machine import autocast_dtype
from selfpatch.data.augment.opencv import fast_rendering_available
from selfpatch.data.prefetch import prefetched
from selfpatch.training import factory
from selfpatch.training.nonfinite import NonFiniteCounter
from selfpatch.training.trainer import training_step

ROUNDS = 8
"""Rounds of steps; images come in bursts, so that only the mean over several steps tells the throughput."""
WARM_UP = 4
"""First steps that are not counted: workers start and kernels compile. The workers' lead on the network is then used
up, or stays full."""
MAX_STEPS = 100_000

Settings = Mapping[str, Any]


def timings(config: RunConfig, device: torch.device, *, seconds: float) -> Iterator[Timing]:
    """Yield the throughput where the CPU or the device renders, and without and with torch.compile on CUDA.

    Each variant is a training from its start, after the other, for about `seconds`.
    """
    name = f"training of {config.model}, {crops_of(config.crops)}, batch {config.batch_size}"
    cpu = "fast" if fast_rendering_available() else "plain"
    renderers: dict[str, Settings] = {
        f"the CPU renders ({cpu})": {"loader": {"render": cpu}},
        "the device renders": {"loader": {"render": "device"}},
    }
    yield _time_variants(name, renderers, config, device, seconds)
    if device.type == "cuda":
        compiled: dict[str, Settings] = {"blocks as they are": {}, "compiled blocks": {"compile": True}}
        yield _time_variants(f"{name}, the device renders", compiled, config, device, seconds)


def _time_variants(
    name: str, variants: Mapping[str, Settings], config: RunConfig, device: torch.device, seconds: float
) -> Timing:
    rounds, peaks = {}, {}
    for variant, settings in variants.items():
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        rounds[variant] = seconds_per_step(config.override(settings), device, seconds=seconds)
        if device.type == "cuda":
            peaks[variant] = torch.cuda.max_memory_allocated(device)
    return Timing(name, rounds, config.batch_size, "images", peak_memory=peaks)


def seconds_per_step(config: RunConfig, device: torch.device, *, seconds: float) -> list[float]:
    """Return the mean time of a step, the wait for its images included, in each of `ROUNDS` rounds.

    Raises:
        ValueError: there are no images, or fewer than the batch size.
    """
    data = factory.open_training_data(config)
    student_teacher = factory.move_to_device(config, factory.make_student_teacher(config)[0], device).train()
    loader = factory.make_loader(config, student_teacher, data, device)
    schedule = factory.make_schedule(config, loader.steps_per_epoch)
    optimizer, autocast = factory.make_optimizer(config, student_teacher), autocast_dtype(config.precision, device)
    steps, nonfinite = count(), NonFiniteCounter(limit=MAX_STEPS)
    with contextlib.closing(prefetched(loader.steps(0, MAX_STEPS), device)) as batches:

        def steps_within(limit: float) -> float:
            """Return the mean time of the steps that begin within `limit` seconds, at least one."""
            wait_for_device()
            started, taken = perf_counter(), 0
            while not taken or perf_counter() - started < limit:
                hp = schedule(min(next(steps), schedule.total_steps - 1))
                outcome = training_step(
                    student_teacher, next(batches), optimizer, hp, config.optimizer, autocast=autocast
                )
                nonfinite.reaches_limit(outcome.finite)  # the host waits for the step before, as in a training
                taken += 1
            wait_for_device()
            return (perf_counter() - started) / taken

        for _ in range(WARM_UP):
            steps_within(0)
        return [steps_within(seconds / ROUNDS) for _ in range(ROUNDS)]
