"""Benchmark of a whole training step: plain references against fast paths, in float32 and in bfloat16."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.config import Clock
from benchmarks.memory import peak_memory
from benchmarks.timing import Case, Timing, count_flops, time_case
from selfpatch.config.recipes import load_recipe
from selfpatch.config.run import RunConfig
from selfpatch.config.schema import size_text
from selfpatch.config.sections import CropConfig
from selfpatch.core.distributed import averaging_gradients, is_distributed
from selfpatch.core.machine import emulates
from selfpatch.core.malloc import keep_freed_memory, return_freed_memory
from selfpatch.core.reference import use_references
from selfpatch.core.types import Views
from selfpatch.data.augment.multicrop import grid_of, view_groups
from selfpatch.training.factory import (
    anchor_recipes,
    make_optimizer,
    make_schedule,
    make_student_teacher,
    pair_recipes,
    view_recipes,
)
from selfpatch.training.packing import pack_crops
from selfpatch.training.student_teacher import StudentTeacher
from selfpatch.training.trainer import training_step

VARIANTS = {
    "plain float32": (True, None),
    "fast float32": (False, None),
    "plain bfloat16": (True, torch.bfloat16),
    "fast bfloat16": (False, torch.bfloat16),
}
"""Whether references replace the fast paths, and the type of autocast, by name."""


def usable_variants(device: torch.device) -> tuple[str, ...]:
    """Return the variants without those of a type that the device emulates, whose steps would take minutes."""
    return tuple(name for name, (_, dtype) in VARIANTS.items() if dtype is None or not emulates(dtype, device))


def published_step(model: str = "vit_small", batch_size: int = 4) -> RunConfig:
    """Return DINO + SelfPatch as the paper trains it, for another model and batch size."""
    return load_recipe("selfpatch-dino-vits16").for_model(model).override({"batch_size": batch_size})


def crops_of(crops: CropConfig) -> str:
    """Return the number and sizes of crops in words."""
    return f"2 x {size_text(crops.global_size)} + {crops.num_local} x {size_text(crops.local_size)} pixels"


def random_views(config: RunConfig, student_teacher: StudentTeacher, device: torch.device) -> Views:
    """Return a batch of noise in the configured crops; each of them is the whole image."""
    batch, generator, needs = config.batch_size, torch.Generator().manual_seed(0), student_teacher.needs
    groups = view_groups(
        view_recipes(config, needs),
        pair_recipes=pair_recipes(config, needs),
        anchor_recipes=anchor_recipes(config, student_teacher),
    )

    def noise(name: str) -> Tensor:
        recipes = groups.get(name, [])
        shape = (len(recipes), batch, config.channels, *(recipes[0].sides if recipes else (0, 0)))
        return torch.randint(256, shape, generator=generator, dtype=torch.uint8)

    crops = {name: noise(name) for name in {*groups, "global_crops"}}
    num_pairs = sum(len(crops.get(name, ())) for name in ("clean_crops", "contained_crops"))
    num_views = len(crops["global_crops"]) + len(crops.get("local_crops", ()))
    whole = torch.tensor([0.0, 0.0, 500.0, 375.0, 0.0])
    masks = None
    if needs.masks:
        grid = grid_of(config.crops.global_size, student_teacher.student.backbone.patch_size)
        masks = torch.rand(2, batch, *grid, generator=generator) < 0.3
    return Views(
        **{"local_crops": None, **crops},  # type: ignore[arg-type]
        boxes=whole.expand(num_views, batch, 5).contiguous(),
        samples=torch.arange(batch),
        masks=masks,
        pair_boxes=whole.expand(num_pairs, batch, 5).contiguous() if num_pairs else None,
    ).to(device)


class StepBench:
    """One network and one batch, trained in any of the `VARIANTS`."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        torch.manual_seed(0)
        student_teacher, _ = make_student_teacher(config)
        self.student_teacher = student_teacher.to(device).train()
        self._model: nn.Module = self.student_teacher
        if is_distributed():
            self._model = averaging_gradients(self.student_teacher)
        self.views = random_views(config, self.student_teacher, device)
        self._hp = replace(make_schedule(config, steps_per_epoch=1000)(5000), freeze_last_layer=False)
        self._optimizers: dict[bool, torch.optim.Optimizer] = {}

    def step(self, variant: str) -> None:
        """Take one training step."""
        plain, autocast = VARIANTS[variant]
        (return_freed_memory if plain else keep_freed_memory)()
        pack_crops(self.student_teacher, self.config.packing, self.device, autocast)
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

    def case(self, name: str, variants: Sequence[str] | None = None) -> Case:
        """Return the case of some variants, by default of all that the device suits."""
        chosen = usable_variants(self.device) if variants is None else variants
        calls = {variant: partial(self.step, variant) for variant in chosen}
        second_of_two = self.device.type == "cpu" and len(calls) > 1
        return Case(name, calls, self.config.batch_size, flops=self.flops(), second_of_two=second_of_two)

    def flops(self) -> float:
        """Return the floating-point operations of a plain step, forward and backward."""
        return count_flops(partial(self.step, "plain float32"))


def step_of(config: RunConfig, variant: str, device: torch.device) -> Callable[[], None]:
    """Return two steps of one variant, for `peak_memory`: only the second has moments and gradients."""
    bench = StepBench(config, device)

    def two_steps() -> None:
        for _ in range(2):
            bench.step(variant)

    return two_steps


def time_steps(
    config: RunConfig, device: torch.device, *, seconds: float, memory: bool = True, clock: Clock = "wall"
) -> Timing:
    """Time all variants in turn, and measure the peak memory of each if `memory`."""
    name = (
        f"step of {config.method} + {config.objective}, {config.model}, {crops_of(config.crops)}, "
        f"batch {config.batch_size}"
    )
    timing = time_case(StepBench(config, device).case(name), seconds=seconds, clock=clock)
    return_freed_memory()  # the default, for the benchmarks that follow
    if not memory:
        return timing
    peaks = {variant: peak_memory(step_of, config, variant, device, device=device) for variant in timing.seconds}
    return replace(timing, peak_memory=peaks)
