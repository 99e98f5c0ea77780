"""A whole training step: the published way of computing it against the fast one, in float32 and in bfloat16."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.memory import peak_memory
from benchmarks.timing import Case, Timing, time_case
from selfpatch.config.recipes import load_recipe
from selfpatch.config.run import RunConfig
from selfpatch.core.distributed import is_distributed
from selfpatch.core.malloc import keep_freed_memory, return_freed_memory
from selfpatch.core.reference import use_references
from selfpatch.core.types import Views
from selfpatch.training.factory import make_optimizer, make_schedule, make_student_teacher
from selfpatch.training.trainer import StudentTeacher, training_step

WAYS = {
    "plain float32": (True, None),
    "fast float32": (False, None),
    "plain bfloat16": (True, torch.bfloat16),
    "fast bfloat16": (False, torch.bfloat16),
}
"""By name: whether references stand in for fast paths, and what autocast computes in."""


def published_step(model: str = "vit_small", batch_size: int = 4) -> RunConfig:
    """DINO + SelfPatch as the paper trains it, for a batch of so many images."""
    return load_recipe("selfpatch-dino-vits16").for_model(model).override({"batch_size": batch_size})


def random_views(config: RunConfig, student_teacher: StudentTeacher, device: torch.device) -> Views:
    """A batch of noise of the configured crops; all boxes are the whole image."""
    crops, batch, generator = config.crops, config.batch_size, torch.Generator().manual_seed(0)

    def noise(views: int, size: int) -> torch.Tensor:
        shape = (views, batch, config.channels, size, size)
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)

    local = crops.num_local if student_teacher.needs.local_crops else 0
    masks = None
    if student_teacher.needs.masks:
        side = crops.global_size // student_teacher.student.backbone.patch_size
        masks = torch.rand(2, batch, side, side, generator=generator) < 0.3
    return Views(
        global_crops=noise(2, crops.global_size),
        local_crops=noise(local, crops.local_size) if local else None,
        boxes=torch.tensor([0.0, 0.0, 500.0, 375.0, 0.0]).expand(2 + local, batch, 5).contiguous(),
        samples=torch.arange(batch),
        masks=masks,
    ).to(device)


class StepBench:
    """One network and one batch, trained on in any of the `WAYS`."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(0)
        student_teacher, _ = make_student_teacher(config)
        self.student_teacher = student_teacher.to(device).train()
        wrap = partial(DistributedDataParallel, broadcast_buffers=False)
        self._model: nn.Module = wrap(self.student_teacher) if is_distributed() else self.student_teacher
        self.views = random_views(config, self.student_teacher, device)
        self._hp = replace(make_schedule(config, steps_per_epoch=1000)(5000), freeze_last_layer=False)
        self._optimizers: dict[bool, torch.optim.Optimizer] = {}

    def step(self, way: str) -> None:
        plain, autocast = WAYS[way]
        (return_freed_memory if plain else keep_freed_memory)()
        with use_references() if plain else contextlib.nullcontext():
            if plain not in self._optimizers:
                self._optimizers[plain] = make_optimizer(self.config, self.student_teacher)
            training_step(
                self._model,
                [self.views],
                self._optimizers[plain],
                self._hp,
                self.config.optimizer,
                autocast=autocast,
            )

    def case(self, name: str, ways: Sequence[str] = tuple(WAYS)) -> Case:
        calls = {way: partial(self.step, way) for way in ways}
        second_of_two = self.device.type == "cpu" and len(calls) > 1
        return Case(name, calls, self.config.batch_size, flops=self.flops(), second_of_two=second_of_two)

    def flops(self) -> float:
        """Of the matrix products and convolutions of a plain step, forward and backward."""
        with FlopCounterMode(display=False) as counter:
            self.step("plain float32")
        return counter.get_total_flops()


def step_of(config: RunConfig, way: str, device: torch.device) -> Callable[[], None]:
    """One way by itself, for `peak_memory`: two steps, as only the second has moments and gradients."""
    bench = StepBench(config, device)

    def two_steps() -> None:
        for _ in range(2):
            bench.step(way)

    return two_steps


def time_steps(config: RunConfig, device: torch.device, *, seconds: float) -> Timing:
    """All ways side by side, and the most memory that each takes."""
    crops = f"2 x {config.crops.global_size} + {config.crops.num_local} x {config.crops.local_size} pixels"
    name = f"step of {config.method} + {config.objective}, {config.model}, {crops}, batch {config.batch_size}"
    timing = time_case(StepBench(config, device).case(name), seconds=seconds)
    return_freed_memory()  # as the process began, for what is timed next
    peaks = {way: peak_memory(step_of, config, way, device, device=device) for way in WAYS}
    return replace(timing, peak_memory=peaks)
