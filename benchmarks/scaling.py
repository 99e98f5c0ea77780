"""What a step costs in time and memory as one thing of it grows: nothing may grow faster than it must."""

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
"""The base, then what grows alone, by what it grows to."""


@dataclass(frozen=True)
class Cost:
    """Of a fast step in float32, on CUDA in bfloat16."""

    name: str
    seconds: float
    flops: float
    peak_bytes: int


def costs(device: torch.device) -> Iterator[Cost]:
    way = "fast bfloat16" if device.type == "cuda" else "fast float32"
    for name, settings in GROWN.items():
        config = RunConfig().override(BASE).override(settings)
        timing = time_case(StepBench(config, device).case(name, ways=[way]), seconds=1.0)
        assert timing.flops is not None
        yield Cost(name, timing.median(way), timing.flops, peak_memory(step_of, config, way, device, device=device))
    for cost in costs_of_processes(RunConfig().override(BASE), way, device):
        yield Cost(f"processes: {cost.processes}, memory of one", *cost[1:])


def table(found: Sequence[Cost]) -> Table:
    base, *_ = found
    shown = Table(title="a step, and what it costs as one thing of it grows", title_justify="left")
    for column in ("", "time", "x", "GFLOP", "x", "peak memory", "x"):
        shown.add_column(column, justify="right" if column else "left")
    for cost in found:
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
