"""Report of a dry run: the resolved settings, and estimates of memory and FLOPs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import yaml
from rich.console import Group, RenderableType
from rich.syntax import Syntax
from rich.table import Table
from torch import nn

from selfpatch.config.run import RunConfig
from selfpatch.config.schema import height_and_width, size_text
from selfpatch.core import distributed
from selfpatch.core.console import Report, literal
from selfpatch.core.cost import MAX_IMAGES, Cost, measure, measure_batch
from selfpatch.core.machine import autocast_dtype, device_name
from selfpatch.core.text import counted
from selfpatch.core.types import Views
from selfpatch.data.augment.multicrop import grid_of, view_groups
from selfpatch.data.collate import make_views
from selfpatch.evaluation.workload import Training, Workload
from selfpatch.training import factory
from selfpatch.training.dataset import TrainingData
from selfpatch.training.memory import memory_of, memory_when_shared
from selfpatch.training.optim import Schedule, set_hyperparameters
from selfpatch.training.packing import pack_crops
from selfpatch.training.parallel import recompute_activations
from selfpatch.training.student_teacher import StudentTeacher


@dataclass(frozen=True, repr=False)
class DryRun(Report):
    """Report of what a command would do; `print` shows it.

    Attributes:
        command: the command, e.g. `pretrain` or `evaluate davis`.
        settings: resolved settings, as config.yaml or result.json would record them.
        data: sizes of the data by name.
        parameters: number of parameters by part.
        groups: parameter groups of the optimizer: number of tensors and of parameters, peak learning rate (`lr`), and
            `weight_decay` at the start.
        memory: bytes by purpose, per process.
        flops: FLOPs of the forward pass of one image, of a step, and of the whole command.
        device: device that the estimate is for.
        precision: precision that the estimate is for.
        notes: what the estimates assume or leave out.
    """

    command: str
    settings: Mapping[str, Any]
    data: Mapping[str, int]
    parameters: Mapping[str, int]
    groups: Sequence[Mapping[str, Any]]
    memory: Mapping[str, int]
    flops: Mapping[str, int]
    device: str
    precision: str
    notes: Sequence[str] = ()

    def __rich__(self) -> RenderableType:
        """Return what the command prints."""
        used = {name: value for name, value in self.settings.items() if value is not None and value != {}}
        text = yaml.safe_dump(used, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
        title = literal(f"{self.command} on {self.device}, {self.precision}", "table.title")
        table = Table(title=title, title_justify="left", show_header=False)
        for justify in ("left", "left", "right"):
            table.add_column(justify=justify)
        for name, values, unit in (
            ("data", self.data, ""),
            ("parameters", self.parameters, ""),
            ("memory per process", self.memory, "B"),
            ("computation", self.flops, "FLOP"),
        ):
            for number, (part, value) in enumerate(values.items()):
                table.add_row("" if number else name, part, _readable(value, unit))
            table.add_section()
        for number, (group, count) in enumerate(self._groups_by_decay()):
            table.add_row("" if number else "optimizer", group, count)
        settings = Syntax(text.rstrip(), "yaml", theme="ansi_dark", background_color="default", word_wrap=True)
        return Group(settings, table, *map(literal, self.notes), "Nothing was written.")

    def _groups_by_decay(self) -> Iterator[tuple[str, str]]:
        """Yield a line for the groups of each weight decay; layer-wise learning rates make dozens of groups."""
        for decay in sorted({group["weight_decay"] for group in self.groups}, reverse=True):
            groups = [group for group in self.groups if group["weight_decay"] == decay]
            rates = sorted({group["lr"] for group in groups})
            tensors, parameters = (sum(group[name] for group in groups) for name in ("tensors", "parameters"))
            spread = f"{rates[0]:.3g}" + (f" to {rates[-1]:.3g}" if len(rates) > 1 else "")
            yield f"{counted(tensors, 'tensor')}, weight decay {decay:g}, learning rate {spread}", f"{parameters:,}"


def _readable(value: float, unit: str) -> str:
    """Return a number as text: `12,345` below a million or without a unit, else e.g. `1.23 TFLOP`."""
    if not unit:
        return f"{value:,}"
    prefix = min(5, int(math.log10(max(value, 1))) // 3)
    return f"{value / 1000**prefix:.3g} {' kMGTP'[prefix].strip()}{unit}" if prefix < 5 else f"{value:.3g} {unit}"


def count_parameters(**parts: nn.Module) -> dict[str, int]:
    """Return the number of parameters of each part."""
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def group_rows(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Return a row for each parameter group of an optimizer."""
    rows = []
    for group in optimizer.param_groups:
        sizes = {"tensors": len(group["params"]), "parameters": sum(p.numel() for p in group["params"])}
        rows.append(sizes | {"lr": group["lr"], "weight_decay": group["weight_decay"]})
    return rows


def estimate_note(device: torch.device) -> str:
    """Return how memory and FLOPs are estimated."""
    return (
        f"Estimate for {device_name(device)} ({device.type}): the network runs on the meta device with this device's "
        f"kernels; batches of more than {MAX_IMAGES} images are extrapolated. Activations are the largest sum of the "
        "tensors of a forward pass, with those kept for the backward pass. Not included: the backward pass's own "
        "workspace, the allocator's reserve, loader processes. FLOPs count matrix products, convolutions and "
        "attention, 2 for each multiplication and addition."
    )


def pretraining_report(
    config: RunConfig,
    settings: Mapping[str, Any],
    data: TrainingData,
    student_teacher: StudentTeacher,
    schedule: Schedule,
    device: torch.device,
) -> DryRun:
    """Return the report of a run whose network is on the meta device; `settings` are as config.yaml records them.

    Raises:
        ValueError: the network cannot be compiled, or a method does not fit its views.
    """
    student = student_teacher.student
    if config.compile:
        student.backbone.repeated_blocks()
    if config.activation_checkpointing:
        recompute_activations(student)
    optimizer = factory.make_optimizer(config, student_teacher)
    hp = schedule(0)
    set_hyperparameters(optimizer, replace(hp, lr=schedule.peak_lr))
    parts = {"backbone": student.backbone, "heads": student.heads, "methods": student_teacher.objectives}
    parameters = count_parameters(**parts, **({} if student.pool is None else {"pool": student.pool}))
    parameters["teacher"] = sum(p.numel() for p in student_teacher.teacher.parameters())
    if student_teacher.anchor is not None:
        parameters["anchor"] = sum(p.numel() for p in student_teacher.anchor.parameters())
    images = config.batch_size // (config.accumulate * distributed.world_size())
    autocast = autocast_dtype(config.precision, device)
    pack_crops(student_teacher, config.packing, device, autocast)
    groups = group_rows(optimizer)
    by_kind = {
        kind: memory_when_shared(student_teacher, optimizer, kind, distributed.world_size(), autocast)
        for kind in ("ddp", "fsdp")
    }
    step = measure_batch(
        lambda count: student_teacher(_dummy_views(config, student_teacher, count), hp)["loss"],
        images,
        [student_teacher.train()],
        device,
        autocast,
    )
    memory = by_kind[config.parallel] | {"activations": step.activation_bytes}
    memory["total"] = sum(memory.values())
    sides = height_and_width(config.crops.global_size)
    with torch.no_grad():
        one = measure(
            lambda: student.backbone(torch.zeros(1, config.channels, *sides)), [student_teacher], device, autocast
        )
    per_step = step.flops * (config.batch_size // images)
    flops = {f"backbone, one image of {size_text(sides)} pixels": one.forward_flops}
    flops |= {"forward passes of an image's views": step.forward_flops // images, "step": per_step}
    flops |= {"whole training": per_step * schedule.total_steps}
    sizes = {"training images": len(data.indices), "held-out images": len(data.held_out_indices)}
    sizes |= {"steps per epoch": schedule.steps_per_epoch, "steps": schedule.total_steps}
    sizes |= {"processes": distributed.world_size(), "images per forward pass": images}
    notes = [estimate_note(device)]
    if distributed.world_size() > 1:
        other = "fsdp" if config.parallel == "ddp" else "ddp"
        total = _readable(sum(by_kind[other].values()) + step.activation_bytes, "B")
        notes.append(f"With --parallel {other}, each of the {distributed.world_size()} processes takes {total}.")
    if config.minutes is not None:
        limit = "" if config.epochs is None else f", at most {config.epochs:g}"
        notes.append(
            f"minutes is {config.minutes:g}: a run measures the speed of its first steps and trains for the epochs "
            f"that fit{limit}; steps and computation above are those of {schedule.epochs:g}."
        )
    return DryRun(
        "pretrain", settings, sizes, parameters, groups, memory, flops, str(device), "bf16" if autocast else "fp32",
        notes,
    )  # fmt: skip


def _dummy_views(config: RunConfig, student_teacher: StudentTeacher, images: int) -> Views:
    """Return views of the shapes that the loader makes for some images."""
    needs = student_teacher.needs
    recipes, pairs = factory.view_recipes(config, needs), factory.pair_recipes(config, needs)
    groups = view_groups(recipes, pair_recipes=pairs, anchor_recipes=factory.anchor_recipes(config, student_teacher))
    crops = {
        name: torch.zeros(len(group), images, config.channels, *group[0].sides, dtype=torch.uint8)
        for name, group in groups.items()
    }
    grid = grid_of(config.crops.global_size, student_teacher.student.backbone.patch_size)
    masks = torch.zeros(2, images, *grid, dtype=torch.bool) if needs.masks else None
    boxes = torch.ones(len(recipes), images, 5)
    pair_boxes = torch.ones(len(pairs), images, 5) if pairs else None
    others = {"boxes": boxes, "samples": torch.zeros(images).long(), "masks": masks, "pair_boxes": pair_boxes}
    return make_views(crops, others)


def evaluation_report(command: str, encoder: Any, workload: Workload, device: torch.device) -> DryRun:
    """Return the report of an evaluation that is ready to begin."""
    parameters, memory, flops = {}, {}, {}
    groups: list[dict[str, Any]] = []
    networks = [encoder] if isinstance(encoder, nn.Module) else []
    training, precision = workload.training, workload.settings.get("precision", "float32")
    if networks:
        parameters = count_parameters(encoder=encoder)
    if training is not None:
        parameters |= count_parameters(trained=training.network)
        groups = group_rows(training.optimizer)
        memory = memory_of(nn.ModuleList([*networks, training.network]), training.optimizer) | {"activations": 0}
    elif networks:
        memory = memory_of(encoder) | {"activations": 0}
    if workload.forward is not None:
        forward = _test_cost(workload, networks, training, device)
        images = workload.shape[0]
        memory["activations"] = forward.activation_bytes
        flops = {"forward pass of one image": forward.forward_flops // images}
        if workload.encoded:
            flops["encoding all images"] = flops["forward pass of one image"] * workload.encoded
    if training is not None:
        images = -(-training.batch_size // distributed.world_size())
        autocast = torch.bfloat16 if training.precision == "bf16" else None
        step = measure_batch(training.loss, images, [*networks, training.network.train()], device, autocast)
        memory["activations"] = max(step.activation_bytes, memory["activations"])
        per_step = step.flops * training.batch_size // images
        flops |= {"training step": per_step, "whole training": per_step * training.steps}
    if memory:
        memory["total"] = sum(memory.values())
    notes = [*workload.notes, *([estimate_note(device)] if flops else [])]
    precision = {"float32": "fp32"}.get(precision, precision)
    return DryRun(
        command, workload.settings, workload.data, parameters, groups, memory, flops, str(device), precision, notes
    )


def _test_cost(workload: Workload, networks: list[nn.Module], training: Training | None, device: torch.device) -> Cost:
    forward, shape = workload.forward, workload.shape
    assert forward is not None
    modules = [*networks, *([] if training is None else [training.network.eval()])]

    def encode() -> Any:
        with torch.no_grad():
            return forward(torch.zeros(shape))

    return measure(encode, modules, device)
