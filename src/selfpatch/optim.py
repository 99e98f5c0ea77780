"""The optimizer's side of a step: parameter groups, clipping, schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from selfpatch.types import Hyperparameters


@dataclass(frozen=True)
class Schedule:
    """The hyper-parameters of every step, as a value: `schedule(step)`.

    Learning rate: linear from 0 to the peak over the warm-up steps, both ends included, then a cosine to `min_lr`.
    Weight decay and teacher momentum: a cosine over all steps. Teacher temperatures: constant within an epoch, linear
    over the warm-up epochs. All as in the released code of DINO.
    """

    epochs: float
    steps_per_epoch: int
    peak_lr: float
    min_lr: float = 1e-6
    warmup_epochs: float = 10
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    teacher_momentum: float = 0.996
    teacher_temp: float = 0.04
    warmup_teacher_temp: float = 0.04
    teacher_patch_temp: float | None = None
    warmup_teacher_patch_temp: float | None = None
    warmup_teacher_temp_epochs: float = 0
    freeze_last_layer_epochs: float = 1

    @property
    def total_steps(self) -> int:
        return max(1, round(self.epochs * self.steps_per_epoch))

    def __call__(self, step: int) -> Hyperparameters:
        epoch = step // self.steps_per_epoch
        teacher_temp = self._temp(epoch, self.warmup_teacher_temp, self.teacher_temp)
        patch_end = self.teacher_temp if self.teacher_patch_temp is None else self.teacher_patch_temp
        patch_start = (
            self.warmup_teacher_temp if self.warmup_teacher_patch_temp is None else self.warmup_teacher_patch_temp
        )
        return Hyperparameters(
            step=step,
            epoch=epoch,
            lr=self._lr(step),
            weight_decay=_cosine(step, self.total_steps, self.weight_decay, self.weight_decay_end),
            teacher_momentum=_cosine(step, self.total_steps, self.teacher_momentum, 1.0),
            teacher_temp=teacher_temp,
            teacher_patch_temp=self._temp(epoch, patch_start, patch_end),
            freeze_last_layer=step < self.freeze_last_layer_epochs * self.steps_per_epoch,
        )

    def _lr(self, step: int) -> float:
        warmup = min(int(self.warmup_epochs * self.steps_per_epoch), self.total_steps)
        if step < warmup:
            return self.peak_lr * step / max(1, warmup - 1)
        return _cosine(step - warmup, self.total_steps - warmup, self.peak_lr, self.min_lr)

    def _temp(self, epoch: int, start: float, end: float) -> float:
        warmup = int(self.warmup_teacher_temp_epochs)
        if epoch >= warmup:
            return end
        return start + (end - start) * epoch / max(1, warmup - 1)


def _cosine(step: int, steps: int, start: float, end: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * step / steps)) / 2


def parameter_groups(module: nn.Module, *, decay_biases: bool = False) -> list[dict]:
    """The trainable parameters, those that weight decay leaves out in a group of their own.

    Args:
        decay_biases: the rule of SERE's released code (1-D tensors that are no bias are left out) instead of that of
            DINO and SelfPatch (biases and all 1-D tensors are).
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            bias = name.endswith(".bias")
            free = (parameter.ndim == 1 and not bias) if decay_biases else (parameter.ndim == 1 or bias)
            (kept if free else decayed).append(parameter)
    return [{"params": decayed, "decayed": True}, {"params": kept, "decayed": False, "weight_decay": 0.0}]


def make_optimizer(module: nn.Module, *, decay_biases: bool = False) -> torch.optim.AdamW:
    """AdamW whose learning rate and weight decay `set_hyperparameters` sets at each step."""
    device = next(module.parameters()).device.type
    return torch.optim.AdamW(
        parameter_groups(module, decay_biases=decay_biases), lr=0.0, fused=device in ("cpu", "cuda")
    )


def set_hyperparameters(optimizer: torch.optim.Optimizer, hp: Hyperparameters) -> None:
    for group in optimizer.param_groups:
        group["lr"] = hp.lr
        if group["decayed"]:
            group["weight_decay"] = hp.weight_decay


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], largest: float, mode: Literal["tensor", "global"]) -> Tensor:
    """Scales gradients down to a norm of at most `largest`: each tensor by itself, as the released code of DINO does,
    or all together. 0 clips nothing.

    Returns:
        The global norm before clipping, a scalar.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    total = norms.norm()
    if largest > 0:
        scales = (largest / ((norms if mode == "tensor" else total.expand_as(norms)) + 1e-6)).clamp(max=1.0)
        for gradient, scale in zip(gradients, scales, strict=True):
            gradient.mul_(scale)
    return total


def drop_last_layer_gradients(module: nn.Module) -> None:
    """Freezes the prototypes for a step: without a gradient there is no weight decay and no Adam state either."""
    for name, parameter in module.named_parameters():
        if ".last_layer." in name:
            parameter.grad = None
