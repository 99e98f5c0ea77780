"""Benchmark of the objectives: a training step of DINO, of DINO with each objective, and of each objective alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from benchmarks.memory import peak_memory
from benchmarks.step import StepBench, crops_of, step_of, usable_variants
from benchmarks.timing import Case, Timing, time_case
from selfpatch.config.run import NO_METHOD, NO_OBJECTIVE, RunConfig
from selfpatch.methods.registry import OBJECTIVES


def compositions(objective: str) -> dict[str, dict[str, str]]:
    """Return method and objective of each of the three steps by its name in the table, DINO's first."""
    return {
        "DINO": {"method": "dino", "objective": NO_OBJECTIVE},
        f"DINO + {objective}": {"method": "dino", "objective": objective},
        f"{objective} alone": {"method": NO_METHOD, "objective": objective},
    }


def timings(config: RunConfig, device: torch.device, *, seconds: float, memory: bool = True) -> Iterator[Timing]:
    """Time the three steps of each objective in turn, and measure their peak memory if `memory`.

    Steps have the fast paths and the settings of `config`, in bfloat16 unless the device emulates it.
    """
    variant = usable_variants(device)[-1]
    for objective in OBJECTIVES:
        runs = {name: config.override(settings) for name, settings in compositions(objective).items()}
        title = f"step with {objective}, {config.model}, {crops_of(config.crops)}, batch {config.batch_size}, {variant}"
        calls = {name: partial(StepBench(run, device).step, variant) for name, run in runs.items()}
        timing = time_case(Case(title, calls, config.batch_size), seconds=seconds)
        peaks = {
            name: peak_memory(step_of, run, variant, device, device=device) for name, run in runs.items() if memory
        }
        yield replace(timing, peak_memory=peaks)


if __name__ == "__main__":
    from benchmarks.run import main

    main("objectives")
