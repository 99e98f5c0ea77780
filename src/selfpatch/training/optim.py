"""The optimizer's side of a step: parameter groups, clipping, schedules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from timm.optim import Lars
from torch import Tensor, nn

from selfpatch.core.reference import fast_path_of, using_references
from selfpatch.core.schedules import cosine
from selfpatch.core.types import Hyperparameters
from selfpatch.models.param_groups import DecayRule, param_groups


@dataclass(frozen=True)
class Schedule:
    """The hyper-parameters of every step, as a value: `schedule(step)`.

    Learning rate: linear from 0 to the peak over the warm-up steps, both ends included, then a cosine to `min_lr`.
    Weight decay and teacher momentum: a cosine over all steps. Teacher temperatures: constant within an epoch, linear
    over the warm-up epochs. All as in the released code of DINO. A teacher that moves before the step (MoCo, MoBY) is
    the one that moves at the end of the step before, with the momentum of the next.
    """

    epochs: float
    steps_per_epoch: int
    peak_lr: float
    min_lr: float = 1e-6
    warmup_epochs: float = 10
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    teacher_momentum: float = 0.996
    teacher_momentum_end: float = 1.0
    teacher_moves: Literal["after_step", "before_step"] = "after_step"
    teacher_temp: float = 0.04
    warmup_teacher_temp: float = 0.04
    teacher_patch_temp: float | None = None
    warmup_teacher_patch_temp: float | None = None
    warmup_teacher_temp_epochs: float = 0
    freeze_last_layer_epochs: float = 1
    freeze_backbone_epochs: float = 0

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
            weight_decay=cosine(step, self.total_steps, self.weight_decay, self.weight_decay_end),
            teacher_momentum=cosine(
                step + (self.teacher_moves == "before_step"),
                self.total_steps,
                self.teacher_momentum,
                self.teacher_momentum_end,
            ),
            teacher_temp=teacher_temp,
            teacher_patch_temp=self._temp(epoch, patch_start, patch_end),
            freeze_last_layer=step < self.freeze_last_layer_epochs * self.steps_per_epoch,
            freeze_backbone=step < self.freeze_backbone_epochs * self.steps_per_epoch,
        )

    def _lr(self, step: int) -> float:
        warmup = min(int(self.warmup_epochs * self.steps_per_epoch), self.total_steps)
        if step < warmup:
            return self.peak_lr * step / max(1, warmup - 1)
        return cosine(step - warmup, self.total_steps - warmup, self.peak_lr, self.min_lr)

    def _temp(self, epoch: int, start: float, end: float) -> float:
        warmup = int(self.warmup_teacher_temp_epochs)
        if epoch >= warmup:
            return end
        return start + (end - start) * epoch / max(1, warmup - 1)


def make_optimizer(
    module: nn.Module,
    *,
    name: Literal["adamw", "sgd", "lars"] = "adamw",
    momentum: float = 0.9,
    weight_decay_on: DecayRule = "matrices",
    lr_scales: Mapping[nn.Parameter, float] | None = None,
) -> torch.optim.Optimizer:
    """The optimizer, whose learning rates and weight decay `set_hyperparameters` sets at each step.

    Args:
        momentum: of SGD and LARS.
        weight_decay_on, lr_scales: as `param_groups` takes them.
    """
    groups = param_groups(module, weight_decay_on=weight_decay_on, lr_scales=lr_scales)
    if name == "lars":
        return Lars(groups, lr=0.0, momentum=momentum)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=momentum)  # the fused one fails on parameters without gradient
    if using_references():
        return torch.optim.AdamW(groups, lr=0.0, foreach=False, fused=False)
    return torch.optim.AdamW(groups, lr=0.0, fused=next(module.parameters()).device.type in ("cpu", "cuda"))


def can_step_if_finite(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `step_if_finite` can be used: the optimizer is a fused AdamW."""
    return isinstance(optimizer, torch.optim.AdamW) and all(group["fused"] for group in optimizer.param_groups)


def step_if_finite(optimizer: torch.optim.Optimizer, ok: Tensor) -> None:
    """The optimizer's step where `ok`, a bool on the device, else none: its count of steps stays too. The device is not
    waited for: a fused AdamW skips by itself, as it does for `torch.amp.GradScaler`.
    """
    assert can_step_if_finite(optimizer)  # others would take the step
    optimizer.found_inf = (~ok).float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]


def set_hyperparameters(optimizer: torch.optim.Optimizer, hp: Hyperparameters) -> None:
    for group in optimizer.param_groups:
        group["lr"] = hp.lr * group["lr_scale"]
        if group["decayed"]:
            group["weight_decay"] = hp.weight_decay


@torch.no_grad()
def clip_gradients_reference(
    parameters: Iterable[nn.Parameter], largest: float, mode: Literal["tensor", "global"]
) -> Tensor:
    """`clip_gradients`, one parameter after the other."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norms = [gradient.norm() for gradient in gradients]
    total = torch.stack(norms).norm()
    for gradient, norm in zip(gradients, norms, strict=True):
        if largest > 0:
            gradient.mul_((largest / ((norm if mode == "tensor" else total) + 1e-6)).clamp(max=1.0))
    return total


@fast_path_of(clip_gradients_reference)
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
        torch._foreach_mul_(gradients, list(scales.unbind()))
    return total


def freeze_gradients(module: nn.Module, part: str) -> None:
    """Freezes the parameters with `part` in their name for a step: without a gradient there is no weight decay and no
    Adam state either.
    """
    for name, parameter in module.named_parameters():
        if part in name:
            parameter.grad = None
