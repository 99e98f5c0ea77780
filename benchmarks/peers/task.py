"""What a trained package is asked for, and its record of steps: all that the processes of `benchmarks.peers` share.

Imported in other packages' environments, hence the standard library and torch alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

GLOBAL_SCALE, LOCAL_SCALE = (0.25, 1.0), (0.05, 0.25)
"""Ranges of the crops' areas, as fractions of the image's."""
NUM_LOCAL, GLOBAL_SIZE, LOCAL_SIZE = 8, 224, 96
CLIP = 3.0
"""Largest norm of the gradient."""
LEARNING_RATE = 1e-5
"""Small, as a batch of few images needs it."""
MAX_STEPS = 100_000
"""More steps than are ever taken: the process is ended from outside."""


@dataclass(frozen=True)
class Task:
    """One training, the same for every package.

    Attributes:
        part: `training`, or `loader`: the batches of the package's loader in one process, without a network.
        data: folder of images.
        model: timm's name of a ViT of 16-pixel patches without its suffix, e.g. `vit_small`.
        batch_size: images in a step.
        workers: loader processes.
        precision: `float32` or `bfloat16` (autocast).
        num_prototypes: outputs of DINO's head.
        device: `cpu` or `cuda`.
        folder: empty folder for whatever the package writes.
        log: file for `StepLog`.
    """

    part: str
    data: str
    model: str
    batch_size: int
    workers: int
    precision: str
    num_prototypes: int
    device: str
    folder: str
    log: str

    @property
    def loader_options(self) -> dict[str, Any]:
        """Arguments of torch's `DataLoader`."""
        return {
            "batch_size": self.batch_size,
            "shuffle": True,
            "drop_last": True,
            "num_workers": self.workers,
            "persistent_workers": self.workers > 0,
            "pin_memory": self.device == "cuda",
        }

    def to_json(self) -> str:
        """Return the argument for the process that trains."""
        return json.dumps(asdict(self))

    @property
    def timm_model(self) -> str:
        """Name of the model in timm."""
        return f"{self.model}_patch16_{GLOBAL_SIZE}"


def read_task() -> Task:
    """Return the task that is this process's only argument."""
    return Task(**json.loads(sys.argv[1]))


class StepLog:
    """File of JSON lines: versions of the package and of torch first, then the number and the clocks of each step."""

    def __init__(self, task: Task, *packages: str) -> None:
        self._file = open(task.log, "a")  # noqa: SIM115
        self._steps = 0
        self._write(versions={name: version(name) for name in (*packages, "torch")}, threads=torch.get_num_threads())

    def follow_optimizers(self) -> RemovableHandle:
        """Record a step after every step of any optimizer of this process, until the handle is removed."""
        return register_optimizer_step_post_hook(lambda *_: self.step())

    def step(self) -> None:
        """Record the end of a step; the clocks of all processes of a machine agree."""
        self._steps += 1
        self._write(step=self._steps, time=time.monotonic(), cpu=cpu_seconds())

    def _write(self, **values: object) -> None:
        print(json.dumps(values), file=self._file, flush=True)


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its loader processes so far, in seconds; Linux only."""
    ticks = 0
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            # utime and stime; the name before them, in parentheses, may hold anything
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")
