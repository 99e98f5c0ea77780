"""What a step costs in time and memory as one thing of it grows: nothing may grow faster than it must."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from selfpatch.benchmarks.memory import peak_memory
from selfpatch.benchmarks.step import StepBench, step_of
from selfpatch.benchmarks.timing import time_case
from selfpatch.config import RunConfig

BASE: dict[str, Any] = {
    "method": "dino",
    "objective": "selfpatch",
    "model": "vit_tiny",
    "batch_size": 4,
    "crops": {"global_size": 112, "local_size": 48, "num_local": 4},
    "dino": {"num_prototypes": 4096},
}
GROWN: dict[str, list[tuple[str, Mapping[str, Any]]]] = {
    "images in a batch": [(str(n), {"batch_size": n}) for n in (2, 4, 8, 16)],
    "local crops": [(str(n), {"crops": {"num_local": n}}) for n in (0, 4, 8, 16)],
    "patches of a global crop": [
        (f"{(s // 16) ** 2}", {"crops": {"global_size": s, "num_local": 0}}) for s in (112, 224, 448)
    ],
    "patches of 8 pixels": [("16: 49", {}), ("8: 196", {"patch_size": 8})],
    "image prototypes": [(f"{n:,}", {"dino": {"num_prototypes": n}}) for n in (4096, 16384, 65536)],
    "patch prototypes": [(f"{n:,}", {"selfpatch": {"num_prototypes": n}}) for n in (1024, 4096, 16384)],
}
"""What grows, and the settings of each of its sizes."""


@dataclass(frozen=True)
class Cost:
    """Of a fast step in float32 (bfloat16 on CUDA)."""

    grown: str
    size: str
    seconds: float
    flops: float
    peak_bytes: int


def costs(device: torch.device) -> Iterator[Cost]:
    way = "fast bfloat16" if device.type == "cuda" else "fast float32"
    for grown, sizes in GROWN.items():
        for size, settings in sizes:
            config = RunConfig().override(BASE).override(settings)
            bench = StepBench(config, device)
            timing = time_case(bench.case(size, ways=[way]), seconds=1.0)
            assert timing.flops is not None
            peak = peak_memory(step_of, config, way, device, device=device)
            yield Cost(grown, size, timing.median(way), timing.flops, peak)


def table(found: list[Cost]) -> Table:
    shown = Table(title="a step as one thing of it grows", title_justify="left")
    for column in ("", "size", "time", "GFLOP", "GFLOP / s", "peak memory"):
        shown.add_column(column, justify="right" if column else "left")
    for number, cost in enumerate(found):
        first = number == 0 or found[number - 1].grown != cost.grown
        shown.add_row(
            cost.grown if first else "",
            cost.size,
            f"{1000 * cost.seconds:,.0f} ms",
            f"{cost.flops / 1e9:,.1f}",
            f"{cost.flops / cost.seconds / 1e9:,.0f}",
            f"{cost.peak_bytes / 2**20:,.0f} MiB",
        )
    return shown
