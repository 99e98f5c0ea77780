"""Training what an evaluation puts on top of a network, or the network itself: with progress, saved, resumable."""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from selfpatch.core.atomic_io import replacing
from selfpatch.core.schedules import Factor
from selfpatch.core.seeds import step_seed
from selfpatch.evaluation.result import Progress
from selfpatch.models.layers.deferred_state import DeferredState

CHECKPOINT = "fitting.pt"
REMEMBERED = 1000


class StepBatches(Protocol):
    """Gives the batch of each step; `selfpatch.evaluation.batches.Batches` is one."""

    def steps(self, first: int, last: int) -> Iterator[Any]: ...


@dataclass(frozen=True)
class Fit:
    """How something is trained.

    Attributes:
        steps: of the optimizer.
        lr: step -> factor on the learning rate that each group of the optimizer began with.
        seed: of what a step itself draws (dropout, drop path, mixup).
        clip: largest global norm of the gradient; 0: none.
        autocast: dtype of the forward pass; None: float32.
        save_every: seconds between two checkpoints.
    """

    steps: int
    lr: Factor
    seed: int = 0
    clip: float = 0.0
    autocast: torch.dtype | None = None
    save_every: float = 120.0


def fit(
    trained: nn.Module,
    loss: Callable[[Any], Tensor],
    batches: StepBatches,
    optimizer: torch.optim.Optimizer,
    how: Fit,
    *,
    settings: Mapping[str, Any],
    out: Path | None = None,
    progress: Progress | None = None,
) -> list[float]:
    """Takes the steps that are left, and leaves `trained` as it is after the last one.

        for each step:
            learning rates = how.lr(step) * those that the groups began with
            loss(batch) -> backward -> clip -> optimizer.step

    Args:
        trained: all that the optimizer changes, buffers included.
        loss: a batch -> a scalar; called with `trained` in training mode, as its caller set it.
        settings: plain values that decide the result. A checkpoint of other ones is refused.
        out: folder of the checkpoint; None: nothing is saved.
        progress: told after each step.

    Returns:
        The losses of the steps taken now, of the last `REMEMBERED` at most.

    Raises:
        ValueError: the folder holds a training with other settings, or the loss is not finite.
    """
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    checkpoint = None if out is None else out / CHECKPOINT
    first = 0 if checkpoint is None else _restore(checkpoint, trained, optimizer, settings)
    losses: deque[Tensor] = deque(maxlen=REMEMBERED)
    saved_at = time.monotonic()
    for step, batch in enumerate(batches.steps(first, how.steps), start=first):
        losses.append(_step(trained, loss, batch, optimizer, how, step))
        if progress is not None:
            progress("training", step + 1, how.steps)
        due = time.monotonic() - saved_at >= how.save_every or step + 1 == how.steps
        if due:
            _check(losses, step)
        if checkpoint is not None and due:
            _save(checkpoint, trained, optimizer, settings, step + 1)
            saved_at = time.monotonic()
    return torch.stack(list(losses)).tolist() if losses else []


def _step(
    trained: nn.Module,
    loss: Callable[[Any], Tensor],
    batch: Any,
    optimizer: torch.optim.Optimizer,
    how: Fit,
    step: int,
) -> Tensor:
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * how.lr(step)
    device = next(trained.parameters()).device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):  # the caller's state stays as it was
        torch.manual_seed(step_seed(how.seed, step))
        with torch.autocast(device.type, how.autocast, enabled=how.autocast is not None):
            value = loss(batch)
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    if how.clip:
        nn.utils.clip_grad_norm_(trained.parameters(), how.clip)
    optimizer.step()
    for part in trained.modules():
        if isinstance(part, DeferredState):  # running statistics of batch norms, say
            part.update()
    return value.detach().float()


def _check(losses: Sequence[Tensor], step: int) -> None:
    """Now and then, so that the device is not waited for at each step."""
    if not math.isfinite(float(losses[-1])):
        raise ValueError(f"the loss is {float(losses[-1])} at step {step}; use a lower learning rate")


def _restore(
    checkpoint: Path, trained: nn.Module, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]
) -> int:
    if not checkpoint.is_file():
        return 0
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if state["settings"] != _plain(settings):
        changed = _changed(json.loads(state["settings"]), json.loads(_plain(settings)))
        raise ValueError(
            f"{checkpoint.parent} holds a training with other settings ({changed}); name another folder with --out, or "
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
