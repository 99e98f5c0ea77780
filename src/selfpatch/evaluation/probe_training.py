"""Training loop of heads, decoders and fine-tuned networks: saved, resumable and with progress."""

import json
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from selfpatch.checkpoints.checkpoint_store import read_whole, save_atomically
from selfpatch.core import distributed
from selfpatch.core.deferred_flag import DeferredFlag
from selfpatch.core.schedules import Factor
from selfpatch.core.seeds import seeded_step
from selfpatch.evaluation.config import Precision
from selfpatch.evaluation.result import NO_OUTPUT, Output
from selfpatch.evaluation.sharding import data_parallel
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
    """Steps of a training, and the numbers that each of them needs."""

    steps: int
    lr: Factor
    """Factor on the initial learning rate of every parameter group, by step."""
    seed: int = 0
    """Seed of the random numbers that a step itself draws (dropout, drop path, mixup)."""
    clip: float = 0.0
    """Largest global norm of the gradient; 0 turns clipping off."""
    precision: Precision = "float32"
    save_every: float = 120.0
    """Seconds between two checkpoints."""


def fit(
    trained: nn.Module,
    loss: Callable[[Any], Tensor],
    batches: StepBatches,
    optimizer: torch.optim.Optimizer,
    plan: TrainingPlan,
    *,
    settings: Mapping[str, Any],
    output: Output = NO_OUTPUT,
) -> list[float]:
    """Take the steps that are left.

        for each step:
            learning rates = plan.lr(step) * the initial ones of the groups
            loss(batch) -> backward -> clip -> optimizer.step

    Each of several processes takes its part of every batch; the steps are those of one process with the whole batch.

    Args:
        trained: the module that the optimizer changes, in training mode; it stays as after the last step.
        loss: function of a batch that returns a scalar, as `data_parallel` takes it.
        batches: source of the batches.
        optimizer: optimizer of the module's parameters.
        plan: steps, schedule, seed and precision.
        settings: plain values that decide the result; a checkpoint of other ones is refused.
        output: folder of the checkpoint, and the progress of `training`.

    Returns:
        The losses of the steps taken now, means over processes, at most the last `MAX_LOSSES`.

    Raises:
        ValueError: the folder holds a training with other settings, or the loss is not finite.
    """
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    checkpoint = None if output.folder is None else output.folder / CHECKPOINT
    wanted, first = json.dumps(dict(settings), sort_keys=True, default=str), 0
    state = None if checkpoint is None else _saved(checkpoint, wanted)
    if state is not None:
        trained.load_state_dict(state["trained"])
        optimizer.load_state_dict(state["optimizer"])
        first = int(state["step"])
    losses: deque[Tensor] = deque(maxlen=MAX_LOSSES)
    pending: tuple[DeferredFlag, Tensor, int] | None = None
    saved_at, loss_of_batch = time.monotonic(), data_parallel(trained, loss)
    for step, batch in enumerate(batches.steps(first, plan.steps), start=first):
        losses.append(_step(trained, loss_of_batch, batch, optimizer, plan, step))
        _require_finite(pending)
        pending = DeferredFlag(losses[-1].isfinite()), losses[-1], step
        output.progress("training", step + 1, plan.steps)
        (due,) = distributed.any_rank(time.monotonic() - saved_at >= plan.save_every)
        if not due and step + 1 < plan.steps:
            continue
        last = float(distributed.all_reduce_mean(losses[-1]))
        if not math.isfinite(last):  # on any process, before anything is saved
            raise ValueError(f"the loss is {last} at step {step}; use a lower learning rate")
        if checkpoint is not None and distributed.is_main_process():
            state = {"step": step + 1, "settings": wanted, "trained": trained.state_dict()}
            save_atomically({**state, "optimizer": optimizer.state_dict()}, checkpoint)
        saved_at = time.monotonic()
    return distributed.all_reduce_mean(torch.stack(list(losses))).tolist() if losses else []


def _require_finite(pending: tuple[DeferredFlag, Tensor, int] | None) -> None:
    """Raise ValueError if the loss of an earlier step, which the device has computed by now, is not finite."""
    if pending is not None and not pending[0]:
        raise ValueError(f"the loss is {float(pending[1])} at step {pending[2]}; use a lower learning rate")


def _saved(checkpoint: Path, wanted: str) -> dict[str, Any] | None:
    """Return the state of a training with the wanted settings, or None if there is none that can be read."""
    if not checkpoint.is_file():
        return None
    try:
        state = read_whole(checkpoint)
        if not (isinstance(state, dict) and state.keys() == {"step", "settings", "trained", "optimizer"}):
            raise ValueError("it is not of this training")
        settings = json.loads(state["settings"])
    except (TypeError, ValueError) as error:
        warnings.warn(f"{checkpoint} cannot be read, and the training starts again: {error}", stacklevel=3)
        return None
    if state["settings"] != wanted:
        raise ValueError(
            f"{checkpoint.parent} holds a training with other settings ({_changed(settings, json.loads(wanted))}); "
            f"give another folder with --out, or remove {checkpoint}"
        )
    return state


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
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=plan.precision == "bf16")
    with seeded_step(plan.seed, step, device), autocast:
        value = loss(batch)
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    if plan.clip:
        nn.utils.clip_grad_norm_(trained.parameters(), plan.clip)
    optimizer.step()
    for state in deferred_states(trained):  # e.g. running statistics of batch norms
        state.update()
    return value.detach().float()


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    return ", ".join(f"{name} {old.get(name)} there, {new.get(name)} now" for name in names[:3])
