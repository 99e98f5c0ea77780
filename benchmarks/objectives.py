"""Benchmark of the objectives: a training step of DINO, of DINO with each objective, and of each objective alone."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.memory import peak_memory
from benchmarks.step import StepBench, crops_of, step_of, usable_variants
from benchmarks.timing import Case, Timing, time_case
from selfpatch.checkpoints.export.safetensors import metadata_of, write_safetensors
from selfpatch.config.run import NO_METHOD, NO_OBJECTIVE, RunConfig
from selfpatch.methods.registry import OBJECTIVES
from selfpatch.training.factory import make_student_teacher


def compositions(objective: str, teacher: str) -> dict[str, dict[str, str]]:
    """Return the settings of each of the three steps by its name in the table, DINO's first.

    `teacher` is the file of the frozen encoder, for objectives that need one.
    """
    added = {"objective": objective} | ({"teacher": teacher} if OBJECTIVES[objective].needs.anchor else {})
    return {
        "DINO": {"method": "dino", "objective": NO_OBJECTIVE},
        f"DINO + {objective}": {"method": "dino", **added},
        f"{objective} alone": {"method": NO_METHOD, **added},
    }


def write_random_weights(config: RunConfig, path: Path) -> str:
    """Write an untrained network of the configured architecture, for objectives that need a frozen encoder."""
    student_teacher, _ = make_student_teacher(config.override({"method": "dino", "objective": NO_OBJECTIVE}))
    backbone = student_teacher.teacher.backbone
    state = {key.removeprefix("trunk."): tensor for key, tensor in backbone.state_dict().items()}
    return str(write_safetensors(path, state, metadata_of(backbone.config)))


def timings(config: RunConfig, device: torch.device, *, seconds: float, memory: bool = True) -> Iterator[Timing]:
    """Time the three steps of each objective in turn, and measure their peak memory if `memory`.

    Steps have the fast paths and the settings of `config`, in bfloat16 unless the device emulates it.
    """
    variant = usable_variants(device)[-1]
    with tempfile.TemporaryDirectory() as folder:
        teacher = write_random_weights(config, Path(folder, "teacher.safetensors"))
        for objective in OBJECTIVES:
            runs = {name: config.override(added) for name, added in compositions(objective, teacher).items()}
            title = f"step with {objective}, {config.model}, {crops_of(config.crops)}, batch {config.batch_size}"
            calls = {name: partial(StepBench(run, device).step, variant) for name, run in runs.items()}
            timing = time_case(Case(f"{title}, {variant}", calls, config.batch_size), seconds=seconds)
            measured = runs if memory else {}
            peaks = {name: peak_memory(step_of, run, variant, device, device=device) for name, run in measured.items()}
            yield replace(timing, peak_memory=peaks)
