"""Benchmark of scaling: time and memory of a step as one setting grows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from benchmarks.memory import peak_memory
from benchmarks.processes import costs_of_processes
from benchmarks.step import StepBench, step_of
from benchmarks.timing import time_case
from selfpatch.config.run import RunConfig
from selfpatch.core.console import plain_table

BASE: dict[str, Any] = {
    "method": "dino",
    "objective": "selfpatch",
    "model": "vit_tiny",
    "batch_size": 4,
    "crops": {"global_size": 112, "local_size": 48, "num_local": 4},
    "dino": {"num_prototypes": 4096},
}
GROWN: dict[str, Mapping[str, Any]] = {
    "ViT-Ti/16, 4 images, 2 x 112 + 4 x 48 pixels, 4,096 prototypes": {},
    "8 images": {"batch_size": 8},
    "16 local crops": {"crops": {"num_local": 16}},
    "196 patches a global crop, not 49": {"crops": {"global_size": 224}},
    "patches of 8 pixels": {"patch_size": 8},
    "65,536 image prototypes": {"dino": {"num_prototypes": 65536}},
    "16,384 patch prototypes": {"selfpatch": {"num_prototypes": 16384}},
}
"""The base, then the one setting that grows, by the name of its new value."""


@dataclass(frozen=True)
class Cost:
    """Cost of a fast step in float32, or in bfloat16 on CUDA."""

    name: str
    seconds: float
    flops: float
    peak_bytes: int


def costs(device: torch.device) -> Iterator[Cost]:
    """Measure the base and every grown step, then the base on one process and on two."""
    variant = "fast bfloat16" if device.type == "cuda" else "fast float32"
    for name, grown in GROWN.items():
        config = RunConfig().override(BASE).override(grown)
        timing = time_case(StepBench(config, device).case(name, variants=[variant]), seconds=1.0)
        assert timing.flops is not None
        peak = peak_memory(step_of, config, variant, device, device=device)
        yield Cost(name, timing.median(variant), timing.flops, peak)
    for cost in costs_of_processes(RunConfig().override(BASE), variant, device):
        yield Cost(f"processes: {cost.processes}, memory of one", *cost[1:])


def table(measured: Sequence[Cost]) -> Table:
    """Return a table of costs, absolute and relative to the first one."""
    base, *_ = measured
    shown = plain_table(title="cost of a step as one setting grows", title_justify="left")
    for column in ("", "time", "x", "GFLOP", "x", "peak memory", "x"):
        shown.add_column(column, justify="right" if column else "left")
    for cost in measured:
        shown.add_row(
            cost.name,
            f"{1000 * cost.seconds:,.0f} ms",
            f"{cost.seconds / base.seconds:.2f}",
            f"{cost.flops / 1e9:,.1f}",
            f"{cost.flops / base.flops:.2f}",
            f"{cost.peak_bytes / 2**20:,.0f} MiB",
            f"{cost.peak_bytes / base.peak_bytes:.2f}",
        )
    return shown
