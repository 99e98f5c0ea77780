"""Saving all that a run needs to go on exactly, and taking it up again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.core.distributed import is_main_process
from selfpatch.core.types import Views
from selfpatch.models.branch import Branch


class NonFinite(ValueError):
    """The loss or the gradient was not finite for several steps in a row."""


@dataclass(frozen=True)
class Saving:
    """When a checkpoint is written, beside the end of the run and a signal, and which ones stay."""

    every_minutes: float = 5
    every_steps: int = 0
    """0: by time only."""
    keep: int = 2
    keep_every_epochs: int = 0
    """Checkpoints of every so many epochs stay for good; 0: none."""


class Checkpointer:
    """Saves weights, centres and optimizer, and restores them. No generator's state is among them: every random draw of
    a step follows from the run's seed and the step's number.
    """

    def __init__(
        self,
        run: RunDirectory,
        pretrainer: nn.Module,
        student: Branch,
        optimizer: torch.optim.Optimizer,
        steps_per_epoch: int,
        saving: Saving,
    ) -> None:
        self._run, self._pretrainer, self._student, self._optimizer = run, pretrainer, student, optimizer
        self._steps_per_epoch, self._saving = steps_per_epoch, saving
        self._saved_at = time.monotonic()

    def restore(self) -> int:
        """Load the newest checkpoint, if there is one.

        Returns:
            The next step to take.
        """
        state = self._run.checkpoints.load_newest()
        step = 0
        if state is not None:
            self._pretrainer.load_state_dict(state["pretrainer"])
            self._optimizer.load_state_dict(state["optimizer"])
            step = int(state["step"])
        if is_main_process():
            self._run.remove_partial_files()
        return step

    def save_if_due(self, done: int, *, force: bool) -> None:
        """Saves with so many steps done, where the clock, the count of steps or a lasting epoch asks for it."""
        saving = self._saving
        lasting_steps = saving.keep_every_epochs * self._steps_per_epoch
        lasting = bool(lasting_steps) and done % lasting_steps == 0
        by_steps = bool(saving.every_steps) and done % saving.every_steps == 0
        by_time = time.monotonic() - self._saved_at >= 60 * saving.every_minutes
        if is_main_process() and (force or lasting or by_steps or by_time):
            self._run.checkpoints.save(self._state(done), step=done, keep=saving.keep, keep_forever=lasting)
            self._saved_at = time.monotonic()

    def give_up(self, batches: Sequence[Views], done: int, failures: int) -> NonFinite:
        """Saves the last batch and the state for replay, and says what to try."""
        message = f"the loss or gradient was not finite for {failures} steps in a row, up to step {done}"
        path = self._run.save_failed_step(batches, self._state(done), message, step=done)
        return NonFinite(
            f"{message}; batch and state are in {path}; the newest checkpoint is from before. "
            "Try a lower optimizer.base_lr, a smaller optimizer.clip, more optimizer.warmup_epochs, or --precision fp32"
        )

    def _state(self, done: int) -> dict[str, Any]:
        return {
            "step": done,
            "pretrainer": self._pretrainer.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "shape": self._student.backbone.config.to_dict(),
        }
