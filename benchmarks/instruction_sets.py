"""Benchmark of this CPU against itself restricted to AVX2, in turns: what a machine without AVX-512 makes of it.

python -m benchmarks.instruction_sets [--data PHOTOS] [--model vit_small] [--batch-size 4] [--rounds 3]

Each turn is a new process, since libraries choose their instructions when they are loaded. Processor time is counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import tyro
from pydantic import PositiveInt

from benchmarks.loader import NUM_IMAGES
from benchmarks.loader import cases as loader_cases
from benchmarks.report import Report, describe_machine
from benchmarks.step import StepBench, published_step
from benchmarks.timing import Timing, time_case
from selfpatch.config.schema import settings
from selfpatch.core.console import console
from selfpatch.core.machine import autocast_dtype

AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENCV_CPU_DISABLE": "AVX512-SKX",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL",
}
"""Environment in which torch, oneDNN, MKL, OpenCV and NumPy take no instructions beyond AVX2."""
ENVIRONMENTS: dict[str, dict[str, str]] = {"AVX2": AVX2, "all instructions": {}}
LOADED = "CropLoader without workers"
"""Case of `benchmarks.loader` that is timed."""


@settings
class InstructionSetsConfig:
    """Time a training step and the loader with all instructions of this CPU, and with those up to AVX2."""

    data: str | None = None
    """Folder of photographs; if not given, the built-in samples."""
    model: str = "vit_small"
    """Model of the step."""
    batch_size: PositiveInt = 4
    """Number of images in a step."""
    rounds: PositiveInt = 3
    """Number of turns of each environment."""
    measure: bool = False
    """Measure in this process alone, and print the times as JSON."""


def measure(config: InstructionSetsConfig) -> dict[str, float]:
    """Return the seconds of processor time of each case, and whether `auto` precision is bfloat16 (1) or not (0)."""
    cpu = torch.device("cpu")
    step = StepBench(published_step(config.model, config.batch_size), cpu)
    data = None if config.data is None else Path(config.data)
    loader = next(case for case in loader_cases(cpu, data) if case.name == LOADED)
    timings = {
        "step": time_case(step.case("step", variants=["fast float32"]), seconds=0.0, clock="cpu").median(
            "fast float32"
        ),
        "loader": time_case(loader, seconds=0.0, clock="cpu").median("fast"),
    }
    return {**timings, "auto is bfloat16": float(autocast_dtype("auto", cpu) is torch.bfloat16)}


def compare(config: InstructionSetsConfig) -> tuple[list[Timing], dict[str, bool]]:
    """Return the timings of step and loader, and whether `auto` precision is bfloat16 in each environment."""
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ENVIRONMENTS}
    command = [sys.executable, "-m", "benchmarks.instruction_sets", "--measure", "--model", config.model]
    command += ["--batch-size", str(config.batch_size), *(["--data", config.data] if config.data else [])]
    for _ in range(config.rounds):
        for name, environment in ENVIRONMENTS.items():
            done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, check=True, text=True)
            rounds[name].append(json.loads(done.stdout.splitlines()[-1]))
    timings = [
        Timing(f"{case}, processor time", {name: [r[case] for r in of] for name, of in rounds.items()}, items, "images")
        for case, items in (("step", config.batch_size), ("loader", NUM_IMAGES))
    ]
    return timings, {name: bool(of[0]["auto is bfloat16"]) for name, of in rounds.items()}


def main() -> None:
    """Run the comparison with the options of the command line."""
    config = tyro.cli(InstructionSetsConfig, description=__doc__)
    if config.measure:
        print(json.dumps(measure(config)))
        return
    timings, chosen = compare(config)
    console.print(*Report(timings, {}, describe_machine(torch.device("cpu"))).tables())
    console.print(*(f"{name}: `auto` is {'bfloat16' if is_bf16 else 'float32'}" for name, is_bf16 in chosen.items()))


if __name__ == "__main__":
    main()
