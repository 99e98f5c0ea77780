"""Benchmark of packed crops: steps with one pass of a ViT for crops of all sizes against one pass for each size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from benchmarks.config import Clock
from benchmarks.memory import peak_memory
from benchmarks.step import StepBench, crops_of, step_of, usable_variants
from benchmarks.timing import Case, Timing, time_case
from selfpatch.config.recipes import load_recipe
from selfpatch.config.run import RunConfig

WAYS = {"separate": "never", "packed": "always"}
"""Value of `packing` by the name in the table."""


def small_step(batch_size: int) -> RunConfig:
    """Return the recipe of DINO + SelfPatch for small data with another batch size."""
    return load_recipe("small-1k").override({"batch_size": batch_size})


def timings(
    config: RunConfig, device: torch.device, *, seconds: float, memory: bool = True, clock: Clock = "wall"
) -> Iterator[Timing]:
    """Time fast steps of both ways in turn, in float32 and in bfloat16, and measure their peak memory if `memory`."""
    runs = {name: config.override({"packing": packing}) for name, packing in WAYS.items()}
    for variant in (name for name in usable_variants(device) if name.startswith("fast")):
        calls = {name: partial(StepBench(run, device).step, variant) for name, run in runs.items()}
        title = f"{variant} step, {config.model}, {crops_of(config.crops)}, batch {config.batch_size}"
        timing = time_case(Case(title, calls, config.batch_size), seconds=seconds, clock=clock)
        measured = runs if memory else {}
        peaks = {name: peak_memory(step_of, run, variant, device, device=device) for name, run in measured.items()}
        yield replace(timing, peak_memory=peaks)
