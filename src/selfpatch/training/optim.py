"""Optimizer side of a pre-training step: schedule, optimizer, clipping; evaluation uses `core.schedules`."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from timm.optim import Lars
from torch import Tensor, nn

from selfpatch.config.sections import ClipMode, OptimizerConfig
from selfpatch.core.distributed import all_reduce_sum, is_sharded, local_shard
from selfpatch.core.reference import fast_path_of, using_references
from selfpatch.core.schedules import cosine
from selfpatch.core.types import Hyperparameters
from selfpatch.models.param_groups import LRScales, param_groups


@dataclass(frozen=True)
class Schedule:
    """The hyperparameters of every step, as a value: `schedule(step)`.

    The learning rate rises linearly from `warmup_start_lr` to the peak over the warm-up steps, both ends included, then
    falls along a cosine to `min_lr`. Weight decay and teacher momentum follow a cosine over all steps. Teacher
    temperatures are constant within an epoch and linear over the warm-up epochs. These are DINO's released schedules;
    the forms of other released code are settings:

        warmup_includes_peak   step t of w has the share t / (w - 1) of the way to the peak, otherwise t / w
        cosine_over            the cosine starts after the warm-up, or spans all steps and starts under the warm-up
        lr_delay               step t has the rate of step max(0, t - lr_delay)
        update_interval        rate and decay change at every step, or at the first step of an epoch
        teacher_temp_interval  temperatures rise at every epoch, or at every step

    Moving the teacher before a step (MoCo, MoBY) equals moving it after the previous one with the next momentum.
    """

    config: OptimizerConfig
    epochs: float
    """Length of the training in epochs."""
    steps_per_epoch: int
    batch_size: int
    """Images in a step, over all processes; the peak learning rate is base_lr * batch_size / 256."""

    @property
    def total_steps(self) -> int:
        """Number of steps of the training, at least 1."""
        return max(1, round(self.epochs * self.steps_per_epoch))

    @property
    def peak_lr(self) -> float:
        """Learning rate at the end of the warm-up."""
        return self.config.base_lr * self.batch_size / 256

    def __call__(self, step: int) -> Hyperparameters:
        """Return the hyperparameters of a step, counted from 0."""
        c, epoch = self.config, step // self.steps_per_epoch
        updated = step if c.update_interval == "step" else epoch * self.steps_per_epoch
        patch_start = c.warmup_teacher_temp if c.warmup_teacher_patch_temp is None else c.warmup_teacher_patch_temp
        patch_end = c.teacher_temp if c.teacher_patch_temp is None else c.teacher_patch_temp
        momentum_step = step + (c.teacher_moves == "before_step")
        return Hyperparameters(
            step=step,
            epoch=epoch,
            lr=self._lr(max(0, updated - c.lr_delay)),
            weight_decay=cosine(updated, self.total_steps, c.weight_decay, c.weight_decay_end),
            teacher_momentum=cosine(momentum_step, self.total_steps, c.teacher_momentum, c.teacher_momentum_end),
            teacher_temp=self._temp(step, c.warmup_teacher_temp, c.teacher_temp),
            teacher_patch_temp=self._temp(step, patch_start, patch_end),
            freeze_last_layer=step < c.freeze_last_layer_epochs * self.steps_per_epoch,
            freeze_backbone=step < c.freeze_backbone_epochs * self.steps_per_epoch,
        )

    def _lr(self, step: int) -> float:
        c, total, peak = self.config, self.total_steps, self.peak_lr
        warmup = min(int(c.warmup_epochs * self.steps_per_epoch), total)
        if step < warmup:
            return c.warmup_start_lr + (peak - c.warmup_start_lr) * step / max(1, warmup - c.warmup_includes_peak)
        covered = warmup if c.cosine_over == "steps_after_warmup" else 0
        return cosine(step - covered, total - covered, peak, c.min_lr)

    def _temp(self, step: int, start: float, end: float) -> float:
        interval = self.steps_per_epoch if self.config.teacher_temp_interval == "epoch" else 1
        warmup = int(self.config.warmup_teacher_temp_epochs * self.steps_per_epoch) // interval
        now = step // interval
        return end if now >= warmup else start + (end - start) * now / max(1, warmup - 1)


def make_optimizer(
    module: nn.Module, config: OptimizerConfig, lr_scales: LRScales | None = None
) -> torch.optim.Optimizer:
    """Return the optimizer, whose learning rates and weight decay `set_hyperparameters` sets at each step.

    `lr_scales` is a factor on the learning rate by parameter, see `models.param_groups`.
    """
    groups = param_groups(module, weight_decay_on=config.weight_decay_on, lr_scales=lr_scales)
    if config.name == "lars":
        return Lars(groups, lr=0.0, momentum=config.momentum)
    if config.name == "sgd":  # not the fused one, which fails on parameters without gradient
        return torch.optim.SGD(groups, lr=0.0, momentum=config.momentum)
    if using_references():
        return torch.optim.AdamW(groups, lr=0.0, foreach=False, fused=False)
    return torch.optim.AdamW(groups, lr=0.0, fused=next(module.parameters()).device.type in ("cpu", "cuda"))


def can_step_if_finite(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether `step_if_finite` accepts the optimizer, which must be a fused AdamW."""
    return isinstance(optimizer, torch.optim.AdamW) and all(group["fused"] for group in optimizer.param_groups)


def step_if_finite(optimizer: torch.optim.Optimizer, ok: Tensor) -> None:
    """Take the optimizer's step where `ok`, a bool scalar, and change nothing otherwise, not even its count of steps.

    A fused AdamW skips the step on the device, as it does for `torch.amp.GradScaler`, so that nothing waits for it.
    """
    assert can_step_if_finite(optimizer)  # others would take the step
    optimizer.found_inf = (~ok).float()  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]


def set_hyperparameters(optimizer: torch.optim.Optimizer, hp: Hyperparameters) -> None:
    """Set the learning rate and the weight decay of each parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = hp.lr * group["lr_scale"]
        if group["decayed"]:
            group["weight_decay"] = hp.weight_decay


@torch.no_grad()
def clip_gradients_reference(parameters: Iterable[nn.Parameter], max_norm: float, mode: ClipMode) -> Tensor:
    """Compute `clip_gradients`, one parameter after the other."""
    gradients, sharded = _local_gradients(parameters)
    norms = _whole_norms(torch.stack([gradient.norm() for gradient in gradients]), sharded)
    total = norms.norm()
    for gradient, norm in zip(gradients, norms, strict=True):
        if max_norm > 0:
            gradient.mul_((max_norm / ((norm if mode == "tensor" else total) + 1e-6)).clamp(max=1.0))
    return total


@fast_path_of(clip_gradients_reference)
@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float, mode: ClipMode) -> Tensor:
    """Scale gradients down to a norm of at most `max_norm`, and return their global norm before, a scalar.

    0 clips nothing. The mode `tensor` clips each parameter's gradient, as DINO's released code does; `global` all
    together.
    """
    gradients, sharded = _local_gradients(parameters)
    norms = _whole_norms(torch.stack(torch._foreach_norm(gradients)), sharded)
    total = norms.norm()
    if max_norm > 0:
        scales = (max_norm / ((norms if mode == "tensor" else total.expand_as(norms)) + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, list(scales.unbind()))
    return total


def _local_gradients(parameters: Iterable[nn.Parameter]) -> tuple[list[Tensor], bool]:
    """Return the gradients, or this process's parts of them, and whether they are sharded."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    return [local_shard(gradient) for gradient in gradients], any(map(is_sharded, gradients))


def _whole_norms(norms: Tensor, sharded: bool) -> Tensor:
    """Return the norms of whole gradients, given those of this process's parts if they are sharded."""
    return all_reduce_sum(norms.square()).sqrt() if sharded else norms


def freeze_gradients(module: nn.Module, part: str) -> None:
    """Freeze the parameters with `part` in their name for one step.

    A parameter without a gradient has neither weight decay nor an update of its optimizer state.
    """
    for name, parameter in module.named_parameters():
        if part in name:
            parameter.grad = None
