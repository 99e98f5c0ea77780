"""A step shared out over processes of this machine, each with its part of the batch and of the cores."""

from __future__ import annotations

import os
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

STEPS = 5


class ProcessCost(NamedTuple):
    processes: int
    seconds: float
    flops: float
    """Of all processes together."""
    peak_bytes: int
    """Of one of them."""


def costs_of_processes(config: RunConfig, way: str, device: torch.device) -> Iterator[ProcessCost]:
    """The same batch on one process and on two; on CUDA only as many as there are devices."""
    for count in (1, 2):
        if device.type != "cuda" or count <= torch.cuda.device_count():
            yield _cost(count, config, way, device)


def _cost(count: int, config: RunConfig, way: str, device: torch.device) -> ProcessCost:
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{Path(folder) / 'meeting'}"
        # What each returns is sent by the first; an error of any is raised here.
        mp.spawn(_steps, (count, meeting, config, way, device.type, results), nprocs=count)
    seconds, flops, peak = results.get()
    return ProcessCost(count, seconds, flops, peak)


def _steps(rank: int, count: int, meeting: str, config: RunConfig, way: str, device_type: str, results: Any) -> None:
    device = torch.device(device_type, rank) if device_type == "cuda" else torch.device(device_type)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // count))
    warnings.filterwarnings("ignore", category=FutureWarning)  # as the command line does, of torch's own plans
    before = largest_resident_size()
    if count > 1:
        backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=count)
    bench = StepBench(replace(config, batch_size=config.batch_size // count), device)
    bench.step(way)
    taken = []
    for _ in range(STEPS):
        wait_for_device()
        started = perf_counter()
        bench.step(way)
        wait_for_device()
        taken.append(perf_counter() - started)
    on_cuda = device_type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) if on_cuda else largest_resident_size() - before
    flops = bench.flops() * count
    if rank == 0:
        results.put((median(taken), flops, peak))
    if count > 1:
        dist.destroy_process_group()
