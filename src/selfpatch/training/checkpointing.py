"""Saving all that a run needs to continue exactly, and restoring it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from selfpatch.checkpoints.checkpoint_store import load_checkpoint
from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.checkpoints.sharded import ShardedTensors, finish_writing, load_sharded
from selfpatch.config.sections import CheckpointConfig
from selfpatch.core.distributed import (
    any_rank,
    background_group,
    is_distributed,
    is_main_process,
    is_sharded,
    local_shard,
)
from selfpatch.core.text import counted, shell
from selfpatch.core.types import Views
from selfpatch.data.workers import LoaderError
from selfpatch.training.parallel import gathered, load_whole

T = TypeVar("T")


def first_difference(module: nn.Module, state: Any) -> str | None:
    """Return a phrase on the first tensor in which a module and saved tensors differ by name or shape, if any."""
    if not isinstance(state, Mapping):
        return "it holds no tensors"
    here, there = _shapes_of(module.state_dict()), _shapes_of(state)
    for name in dict.fromkeys([*here, *there]):
        if here.get(name) != there.get(name):
            return f"{name} is {there.get(name) or 'missing'} there and {here.get(name) or 'missing'} here"
    return None


def _shapes_of(tensors: Mapping[str, Any]) -> dict[str, list[int]]:
    """Return the shapes of tensors by name; those of a sharded checkpoint are known without reading it."""
    if isinstance(tensors, ShardedTensors):
        return {name: list(tensors.shape(name)) for name in tensors}
    return {name: list(tensor.shape) for name, tensor in tensors.items() if isinstance(tensor, Tensor)}


class NonFiniteError(ValueError):
    """The loss or the gradient was not finite for several steps in a row."""


class Checkpointer:
    """Saves and restores weights, centres and optimizer.

    No generator's state is saved: every random draw of a step follows from the run's seed and the step's number.

    Args:
        config: times at which checkpoints are written.
        run: the run directory.
        student_teacher: the network.
        shapes: entries that describe its backbones.
        optimizer: the optimizer.
        steps_per_epoch: number of steps of an epoch.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        run: RunDirectory,
        student_teacher: nn.Module,
        shapes: Mapping[str, Any],
        optimizer: torch.optim.Optimizer,
        steps_per_epoch: int,
    ) -> None:
        self._config, self._run = config, run
        self._student_teacher, self._shapes, self._optimizer = student_teacher, shapes, optimizer
        self._steps_per_epoch = steps_per_epoch
        self._saved_at = time.monotonic()
        network_sharded = any(map(is_sharded, student_teacher.parameters()))
        self._sharded = config.format == "sharded" or (config.format == "auto" and network_sharded)
        self._together = self._sharded or network_sharded
        self._group = background_group() if self._sharded else None
        self._pending: Future[object] | None = None

    def restore(self) -> int:
        """Load the newest checkpoint, if there is one, and return the next step to take."""
        path = self._run.checkpoints.newest()
        step = 0
        if path is not None:
            try:
                step = self._load(path)
            except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
                reason = str(error).partition("\n")[0]
                raise ValueError(
                    f"the newest checkpoint in {self._run.checkpoints.folder} does not fit this run ({reason}); "
                    "move it away, and the run goes on from the one before"
                ) from None
        if is_main_process():
            self._run.remove_partial_files()
        return step

    def _load(self, path: Path) -> int:
        """Load a checkpoint, in whatever format and by however many processes it was written, and return its step."""
        state = load_checkpoint(path)
        if path.is_dir():
            parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
            moments = load_sharded(path, self._student_teacher.state_dict(), parameters)
            self._optimizer.load_state_dict(moments)
        else:
            load_whole(self._student_teacher, state["pretrainer"], self._optimizer, state["optimizer"])
        return int(state["step"])

    def save_if_due(self, done: int, *, force: bool) -> None:
        """Save a checkpoint after `done` steps if one is due by time, steps or epoch, or if `force`."""
        config = self._config
        kept_interval = config.keep_every_epochs * self._steps_per_epoch
        keep_forever = bool(kept_interval) and done % kept_interval == 0
        due_by_steps = bool(config.every_steps) and done % config.every_steps == 0
        due_by_time = time.monotonic() - self._saved_at >= 60 * config.every_minutes
        due = force or keep_forever or due_by_steps or (is_main_process() and due_by_time)
        if self._together:
            (due,) = any_rank(due)
        if self._pending is not None and (due or self._pending.done()):
            self._finish()
        if due:
            self._save(done, keep_forever)
            self._saved_at = time.monotonic()
        if force:
            self._finish()

    def _save(self, done: int, keep_forever: bool) -> None:
        state, store, keep = self._state(done), self._run.checkpoints, self._config.keep
        if self._sharded:
            self._pending = store.save_sharded(
                state, step=done, keep=keep, keep_forever=keep_forever, group=self._group
            )
            return
        state = gathered(state)
        if is_main_process():
            store.save(state, step=done, keep=keep, keep_forever=keep_forever)

    def _finish(self) -> None:
        """Wait for the checkpoint that is being written in the background, if there is one."""
        pending, self._pending = self._pending, None
        if pending is not None:
            finish_writing(pending, self._run.checkpoints.folder)

    def saved_if_loading_fails(self, steps: Iterator[T], first: int) -> Iterator[T]:
        """Yield what the steps from `first` on are made of; if a loader process fails, save the steps taken.

        What all processes save together stays as of the newest checkpoint.

        Raises:
            LoaderError: with the command that continues the run.
        """
        done = first
        try:
            for item in steps:
                yield item
                done += 1
        except LoaderError as error:
            if done == 0:
                raise
            if self._together and is_distributed():
                self._finish()  # the others wait for this process in the middle of a step, and cannot save with it
            elif done > first:
                self.save_if_due(done, force=True)
            raise LoaderError(f"{error}; continue with: {shell('selfpatch', 'resume', self._run.path)}") from error

    def dump_failed_step(self, batches: Sequence[Views], done: int) -> NonFiniteError:
        """Save the last batch and the state for replay, and return the error to raise."""
        steps = counted(self._config.max_nonfinite, "step")
        message = f"the loss or gradient was not finite for {steps} in a row, up to step {done}"
        parts = tree_map(lambda x: local_shard(x) if isinstance(x, Tensor) else x, self._state(done))
        path = self._run.save_failed_step(batches, parts, message, step=done)
        return NonFiniteError(
            f"{message}; batch and state are in {path}; the newest checkpoint is from before. "
            "Try a lower optimizer.base_lr, a smaller optimizer.clip, more optimizer.warmup_epochs, or --precision fp32"
        )

    def _state(self, done: int) -> dict[str, Any]:
        return {
            "step": done,
            "pretrainer": self._student_teacher.state_dict(),  # the names of the first version's files
            "optimizer": self._optimizer.state_dict(),
            **self._shapes,
        }
