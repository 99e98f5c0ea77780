"""Training loop of heads, decoders and fine-tuned networks: saved, resumable and with progress."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from selfpatch.core.atomic_io import replacing
from selfpatch.core.schedules import Factor
from selfpatch.core.seeds import step_seed
from selfpatch.evaluation.result import Progress
from selfpatch.models.layers.deferred_state import deferred_states

CHECKPOINT = "fitting.pt"
MAX_LOSSES = 1000
"""Number of last losses that `fit` returns."""


class StepBatches(Protocol):
    """Source of the batch of each step; `selfpatch.evaluation.batches.Batches` is one."""

    def steps(self, first: int, last: int) -> Iterator[Any]:
        """Yield the batches of the steps `first`, ..., `last` - 1."""
        ...


@dataclass(frozen=True)
class TrainingPlan:
    """Steps of a training, and the numbers that each of them needs.

    Attributes:
        steps: number of optimizer steps.
        lr: factor on the initial learning rate of every parameter group, by step.
        seed: seed of the random numbers that a step itself draws (dropout, drop path, mixup).
        clip: largest global norm of the gradient; 0 turns clipping off.
        precision: precision of the forward pass; bf16 uses autocast.
        save_every: seconds between two checkpoints.
    """

    steps: int
    lr: Factor
    seed: int = 0
    clip: float = 0.0
    precision: Literal["float32", "bf16"] = "float32"
    save_every: float = 120.0


def fit(
    trained: nn.Module,
    loss: Callable[[Any], Tensor],
    batches: StepBatches,
    optimizer: torch.optim.Optimizer,
    plan: TrainingPlan,
    *,
    settings: Mapping[str, Any],
    out: Path | None = None,
    progress: Progress | None = None,
) -> list[float]:
    """Take the steps that are left.

        for each step:
            learning rates = plan.lr(step) * the initial ones of the groups
            loss(batch) -> backward -> clip -> optimizer.step

    Args:
        trained: the module that the optimizer changes, buffers included, in training mode; it is left as it is after
            the last step.
        loss: function of a batch that returns a scalar.
        batches: source of the batches.
        optimizer: optimizer of the module's parameters.
        plan: steps, schedule, seed and precision.
        settings: plain values that decide the result; a checkpoint of other ones is refused.
        out: folder of the checkpoint; if None, nothing is saved.
        progress: called with `training`, the number of steps done and their total.

    Returns:
        The losses of the steps taken now, at most the last `MAX_LOSSES`.

    Raises:
        ValueError: the folder holds a training with other settings, or the loss is not finite.
    """
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    checkpoint = None if out is None else out / CHECKPOINT
    first = 0 if checkpoint is None else _restore(checkpoint, trained, optimizer, settings)
    losses: deque[Tensor] = deque(maxlen=MAX_LOSSES)
    saved_at = time.monotonic()
    for step, batch in enumerate(batches.steps(first, plan.steps), start=first):
        losses.append(_step(trained, loss, batch, optimizer, plan, step))
        if progress is not None:
            progress("training", step + 1, plan.steps)
        due = time.monotonic() - saved_at >= plan.save_every or step + 1 == plan.steps
        if due:
            _check_loss(float(losses[-1]), step)  # rarely, because it synchronises with the device
        if checkpoint is not None and due:
            _save(checkpoint, trained, optimizer, settings, step + 1)
            saved_at = time.monotonic()
    return torch.stack(list(losses)).tolist() if losses else []


def _step(
    trained: nn.Module,
    loss: Callable[[Any], Tensor],
    batch: Any,
    optimizer: torch.optim.Optimizer,
    plan: TrainingPlan,
    step: int,
) -> Tensor:
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * plan.lr(step)
    device = next(trained.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # the caller's state stays as it was
        torch.manual_seed(step_seed(plan.seed, step))
        with torch.autocast(device.type, torch.bfloat16, enabled=plan.precision == "bf16"):
            value = loss(batch)
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    if plan.clip:
        nn.utils.clip_grad_norm_(trained.parameters(), plan.clip)
    optimizer.step()
    for state in deferred_states(trained):  # e.g. running statistics of batch norms
        state.update()
    return value.detach().float()


def _check_loss(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise ValueError(f"the loss is {loss} at step {step}; use a lower learning rate")


def _restore(
    checkpoint: Path, trained: nn.Module, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]
) -> int:
    if not checkpoint.is_file():
        return 0
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if state["settings"] != _plain(settings):
        changed = _changed(json.loads(state["settings"]), json.loads(_plain(settings)))
        raise ValueError(
            f"{checkpoint.parent} holds a training with other settings ({changed}); give another folder with --out, or "
            f"remove {checkpoint}"
        )
    trained.load_state_dict(state["trained"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _save(
    checkpoint: Path, trained: nn.Module, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any], step: int
) -> None:
    state = {"step": step, "settings": _plain(settings), "trained": trained.state_dict()}
    with replacing(checkpoint) as file:
        torch.save({**state, "optimizer": optimizer.state_dict()}, file)


def _plain(settings: Mapping[str, Any]) -> str:
    return json.dumps(dict(settings), sort_keys=True, default=str)


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {old.get(name)} there, {new.get(name)} now" for name in names[:3])
