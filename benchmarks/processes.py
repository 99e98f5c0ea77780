"""Cost of a step that is shared out over processes of this machine, each with its part of the batch and the cores."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.memory import largest_resident_size
from benchmarks.step import StepBench
from benchmarks.timing import wait_for_device
from selfpatch.config.run import RunConfig
from selfpatch.core.machine import num_cores

STEPS = 5


class ProcessCost(NamedTuple):
    """Cost of a step on several processes."""

    processes: int
    seconds: float
    flops: float
    """Floating-point operations of all processes together."""
    peak_bytes: int
    """Peak memory of one process."""


def costs_of_processes(config: RunConfig, variant: str, device: torch.device) -> Iterator[ProcessCost]:
    """Measure the same batch on one process and on two; on CUDA, on no more than there are devices."""
    for count in (1, 2):
        if device.type != "cuda" or count <= torch.cuda.device_count():
            yield _cost(count, config, variant, device)


def _cost(count: int, config: RunConfig, variant: str, device: torch.device) -> ProcessCost:
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{Path(folder) / 'meeting'}"
        mp.spawn(_steps, (count, meeting, config, variant, device.type, results), nprocs=count)
    seconds, flops, peak = results.get()
    return ProcessCost(count, seconds, flops, peak)


def _steps(
    rank: int, count: int, meeting: str, config: RunConfig, variant: str, device_type: str, results: Any
) -> None:
    """Time steps on one process; the first process sends the result."""
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device(device_type)
    torch.set_num_threads(max(1, num_cores() // count))
    warnings.filterwarnings("ignore", category=FutureWarning)  # torch's announcements, as on the command line
    before = largest_resident_size()
    if count > 1:
        backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=count)
    bench = StepBench(replace(config, batch_size=config.batch_size // count), device)
    bench.step(variant)
    taken = []
    for _ in range(STEPS):
        wait_for_device()
        started = perf_counter()
        bench.step(variant)
        wait_for_device()
        taken.append(perf_counter() - started)
    on_cuda = device_type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) if on_cuda else largest_resident_size() - before
    flops = bench.flops() * count
    if rank == 0:
        results.put((median(taken), flops, peak))
    if count > 1:
        dist.destroy_process_group()
