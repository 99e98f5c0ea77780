"""Steps and checkpoints of one network under DDP and FSDP2: seconds, memory, and what saving costs.

python -m benchmarks.parallel --model vit_large --batch-size 32               one GPU
torchrun --nproc-per-node 8 -m benchmarks.parallel --model vit_large          several
torchrun --nproc-per-node 2 -m benchmarks.parallel --device cpu --size tiny   without a GPU
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
import torch.distributed as dist
import tyro
from pydantic import PositiveInt

from benchmarks.report import describe_machine
from benchmarks.step import published_step, random_views
from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.run import RunConfig
from selfpatch.config.schema import settings
from selfpatch.config.sections import CheckpointConfig
from selfpatch.core import distributed
from selfpatch.core.atomic_io import write_atomically
from selfpatch.core.console import console
from selfpatch.core.machine import autocast_dtype
from selfpatch.training.anchor import shapes
from selfpatch.training.checkpointing import Checkpointer
from selfpatch.training.factory import make_optimizer, make_schedule, make_student_teacher, move_to_device
from selfpatch.training.parallel import data_parallel
from selfpatch.training.trainer import training_step

WARM_UP = 3
"""Steps that are not counted."""
TINY: dict[str, Any] = {
    "crops": {"global_size": 64, "local_size": 48},
    "dino": {"num_prototypes": 64},
    "selfpatch": {"num_prototypes": 64},
}
KINDS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"parallel": "fsdp"},
    "fsdp, activation checkpointing": {"parallel": "fsdp", "activation_checkpointing": True},
}


Saving = Literal["none", "file", "sharded"]


@settings
class ParallelConfig:
    """Time steps and checkpoints under DDP and FSDP2, on as many processes as torchrun starts."""

    device: str = "cuda"
    """Device to measure."""
    model: str = "vit_large"
    """Architecture."""
    batch_size: PositiveInt = 32
    """Number of images in a step, over all processes."""
    steps: PositiveInt = 10
    """Number of steps that are timed."""
    size: Literal["full", "tiny"] = "full"
    """Size of crops and heads: as published, or `tiny` to try the script."""
    out: str | None = None
    """JSON file of the results."""


@dataclass(frozen=True)
class Row:
    """Figures of one kind, of the main process."""

    kind: str
    saving: Saving
    """`none`, `file` or `sharded`, which is written in the background; the latter two after every other step."""
    step_seconds: float
    """Median of all steps, with those waits for a checkpoint that follow them."""
    saving_seconds: float
    """Median time that the loop spends in a step after which a checkpoint is due; 0 without."""
    peak_memory: int | None
    """Bytes on a CUDA device."""


def rows(config: ParallelConfig, run: RunConfig, device: torch.device, folder: Path) -> Iterator[Row]:
    """Yield the figures of each kind, first without saving."""
    for kind, changes in KINDS.items():
        savings: tuple[Saving, ...] = ("none",) if "checkpointing" in kind else ("none", "file", "sharded")
        for saving in savings:
            yield _measure(kind, run.override(changes), device, config.steps, saving, folder)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _measure(kind: str, run: RunConfig, device: torch.device, steps: int, saving: Saving, folder: Path) -> Row:
    torch.manual_seed(0)
    student_teacher = move_to_device(run, make_student_teacher(run)[0], device)
    model, optimizer = data_parallel(student_teacher.train()), make_optimizer(run, student_teacher)
    own = replace(run, batch_size=run.batch_size // distributed.world_size())
    views, hp = random_views(own, student_teacher, device), make_schedule(run, steps_per_epoch=1000)(5000)
    autocast = autocast_dtype(run.precision, device)
    form: Literal["auto", "file", "sharded"] = "auto" if saving == "none" else saving
    checkpoint = CheckpointConfig(every_steps=2, keep=1, every_minutes=1e6, format=form)
    backbone = student_teacher.student.backbone
    directory = RunDirectory(folder / f"{kind}-{saving}", {})
    checkpointer = Checkpointer(checkpoint, directory, student_teacher, shapes(backbone, None), optimizer, 10**9)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    taken, saved = [], []
    for step in range(WARM_UP + steps):
        began = perf_counter()
        training_step(model, [views], optimizer, hp, run.optimizer, autocast=autocast)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        stepped = perf_counter()
        if saving != "none":
            checkpointer.save_if_due(step + 1, force=False)
        if step >= WARM_UP:
            taken.append(perf_counter() - began)
            if (step + 1) % 2 == 0:
                saved.append(perf_counter() - stepped)
    if saving != "none":
        checkpointer.save_if_due(WARM_UP + steps + 1, force=True)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    spent = statistics.median(saved) if saving != "none" and saved else 0.0
    return Row(kind, saving, statistics.median(taken), spent, peak)


def main() -> None:
    """Measure, print a table, and write the results."""
    config = tyro.cli(ParallelConfig)
    device = distributed.start(config.device)
    if not distributed.is_distributed():  # FSDP2 on one device needs a group as well
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "RANK": "0", "WORLD_SIZE": "1"}
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    run = published_step(config.model, config.batch_size).override(TINY if config.size == "tiny" else {})
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(distributed.broadcast_from_main(temporary))
        for row in rows(config, run, device, folder):
            found.append(row)
            if distributed.is_main_process():
                memory = "" if row.peak_memory is None else f", {row.peak_memory / 1e9:.1f} GB"
                console.print(
                    f"{row.kind}, saving {row.saving}: {row.step_seconds:.3f} s a step, "
                    f"{row.saving_seconds:.3f} s wait for each checkpoint{memory}"
                )
                if config.out is not None:  # what is known is kept if a limit of time ends the process
                    content = {"machine": describe_machine(device), "processes": distributed.world_size()}
                    content |= {"settings": asdict(config), "rows": [asdict(one) for one in found]}
                    write_atomically(Path(config.out), json.dumps(content, indent=1) + "\n")
        distributed.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
