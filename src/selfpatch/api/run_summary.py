"""Lines that describe a new run before it begins."""

import torch
from torch import nn

from selfpatch.api.first_checks import batch_note
from selfpatch.api.short_runs import usual_settings
from selfpatch.config.run import FROM_INIT, RunConfig
from selfpatch.core import distributed
from selfpatch.core.machine import autocast_dtype
from selfpatch.core.text import counted
from selfpatch.models.anchor import Anchor
from selfpatch.models.layers.lora import LoraLinear
from selfpatch.training.dataset import TrainingData
from selfpatch.training.optim import Schedule
from selfpatch.training.student_teacher import StudentTeacher


def run_summary(
    config: RunConfig, data: TrainingData, student_teacher: StudentTeacher, schedule: Schedule, device: torch.device
) -> list[str]:
    """Return the lines that describe a new run."""
    backbone = student_teacher.student.backbone
    model = config.model if config.model != FROM_INIT else backbone.config.family
    parameters = sum(p.numel() for p in backbone.parameters())
    precision = "bf16 autocast" if autocast_dtype(config.precision, device) else "fp32"
    channels = "" if config.channels == 3 else f", {config.channels} channels normalised by their own statistics"
    return [
        f"{counted(len(data.indices), 'image')} to train on, {len(data.held_out_indices)} held out "
        f"({config.data}){channels}",
        f"recipe {config.recipe or '(none)'}: {' + '.join(config.used)}",
        f"{model} of width {backbone.dim}, patch {backbone.patch_size}, {parameters / 1e6:.1f} M parameters",
        *([] if (anchor := student_teacher.anchor) is None else _anchor_lines(config, anchor, schedule.total_steps)),
        *_adapters(config, backbone),
        f"{counted(schedule.total_steps, 'step')} of {counted(config.batch_size, 'image')}, in "
        f"{counted(schedule.epochs, 'epoch', '.4g')} of {counted(schedule.steps_per_epoch, 'step')}",
        f"peak learning rate {schedule.peak_lr:.3g} ({config.optimizer.base_lr:g} x {config.batch_size} / 256)",
        *batch_note(config, len(data.indices)),
        *_unread(config, student_teacher),
        f"{precision} on {device}, {counted(distributed.world_size(), 'process')}",
    ]


def _unread(config: RunConfig, student_teacher: StudentTeacher) -> list[str]:
    """Return a note on sections that nothing in the run reads although they differ from the recipe's."""
    needs, usual = student_teacher.needs, usual_settings(config.recipe) or config
    read = {"pairs": needs.pairs, "masks": needs.masks, "anchor": needs.anchor, "lora": config.lora.rank > 0}
    names = [name for name, is_read in read.items() if not is_read and getattr(config, name) != getattr(usual, name)]
    return [f"note: nothing in this run reads the settings of {' and '.join(names)}"] if names else []


def _anchor_lines(config: RunConfig, anchor: Anchor, num_steps: int) -> list[str]:
    """Return a line on the anchor, and one if its losses start late or never."""
    backbone, named = anchor.branch.backbone, config.teacher or "initial weights"
    refreshed = (
        f", replaced by the teacher every {counted(anchor.refresh_every, 'step')}" if anchor.refresh_every else ""
    )
    shape = f"{backbone.config.family} of width {backbone.dim}, patch {backbone.patch_size}"
    lines = [f"anchor {named}: {shape}{refreshed}"]
    if anchor.first_step:
        never = f", but the run ends at step {num_steps}; lower --anchor.refresh-every"
        end = never if num_steps <= anchor.first_step else ""
        lines.append(f"note: losses on the anchor are 0 until step {anchor.first_step}{end}")
    return lines


def _adapters(config: RunConfig, backbone: nn.Module) -> list[str]:
    """Return a line on low-rank adapters, if the run has them, and what they save."""
    if not config.lora.rank:
        return []
    per_parameter = 4 * (3 if config.optimizer.name == "adamw" else 2)  # gradient and state, in float32
    total = sum(p.numel() for p in backbone.parameters())
    trained = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    layers = sum(isinstance(part, LoraLinear) for part in backbone.modules())
    return [
        f"LoRA of rank {config.lora.rank} in {counted(layers, 'layer')}: {trained:,} parameters of the backbone are "
        f"trained ({trained / total:.1%}); gradients and optimizer state take {trained * per_parameter / 1e6:.1f} MB, "
        f"of all parameters they would take {total * per_parameter / 1e6:.0f} MB; the teacher shares the others"
    ]
