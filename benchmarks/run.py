"""Run benchmarks, print their tables and write their report."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import tyro

from benchmarks import davis, end_to_end, loader, objectives, ops, packing, scaling, step
from benchmarks.ceiling import matrix_ceiling
from benchmarks.config import BenchConfig
from benchmarks.report import Report, describe_machine
from benchmarks.timing import Case, Timing, time_case
from selfpatch.core.console import console
from selfpatch.core.distributed import start
from selfpatch.core.machine import slowdown
from selfpatch.data.sample_images import sample_photographs


def main() -> None:
    """Run benchmarks with the options of the command line."""
    try:
        run_benchmarks(tyro.cli(BenchConfig))
    except ValueError as error:
        sys.exit(f"benchmarks: {error}")


def run_benchmarks(config: BenchConfig) -> Report:
    """Run benchmarks; each table is printed as soon as it is known.

    Raises:
        ValueError: the folder of photographs holds no images, or the device does not exist.
    """
    device = start(config.device)
    measured = {name: matrix_ceiling(device, getattr(torch, name)) for name in ("float32", "bfloat16")}
    ceilings = {name: rate for name, rate in measured.items() if rate is not None}
    machine = describe_machine(device)
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    rates = ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in ceilings.items())
    console.print(f"matrix products: {rates}")
    for name in measured.keys() - ceilings.keys():
        times = slowdown(getattr(torch, name), device)
        console.print(f"{name} is left out: this device emulates it, {times:.0f} times slower than float32")
    timings: list[Timing] = []
    costs: list[scaling.Cost] = []
    for number, part in enumerate(config.parts, start=1):
        console.print(f"part {number} of {len(config.parts)}: {part}")
        if part == "scaling":
            costs = list(scaling.costs(device))
            console.print(scaling.table(costs))
        for timing in _timings(part, config, device):
            timings.append(timing)
            console.print(*Report([timing], ceilings, machine).tables())
            if config.out is not None:  # what is known is kept if a limit of time ends the process
                Report(timings, ceilings, machine, costs).save(Path(config.out))
    report = Report(timings, ceilings, machine, costs)
    if config.out is not None:
        report.save(Path(config.out))
    return report


def _timings(part: str, config: BenchConfig, device: torch.device) -> Iterator[Timing]:
    for model in config.model if part in ("step", "end_to_end", "objectives", "packing") else ():
        crops = {"global_size": config.global_size, "local_size": config.local_size}
        changes = {"crops": crops, "dino": {"num_prototypes": config.num_prototypes}}
        run = step.published_step(model, config.batch_size).override(changes)
        if part == "step":
            yield step.time_steps(run, device, seconds=config.seconds, memory=config.memory, clock=config.clock)
        elif part == "objectives":
            yield from objectives.timings(run, device, seconds=config.seconds, memory=config.memory)
        elif part == "packing":
            yield from packing.timings(run, device, seconds=config.seconds, memory=config.memory, clock=config.clock)
        else:
            data = str(sample_photographs() / "training") if config.data is None else config.data
            yield from end_to_end.timings(run.override({"data": data}), device, seconds=config.seconds)
    if part == "packing":
        small = packing.small_step(16 * config.batch_size)
        yield from packing.timings(small, device, seconds=config.seconds, memory=config.memory, clock=config.clock)
    for case in _cases(part, config, device):
        yield time_case(case, seconds=config.seconds, clock=config.clock)


def _cases(part: str, config: BenchConfig, device: torch.device) -> Iterator[Case]:
    if part == "loader":
        yield from loader.cases(device, None if config.data is None else Path(config.data))
    elif part == "ops":
        yield from ops.cases(device)
    elif part == "davis":
        yield from davis.cases(device, config.model[0])
