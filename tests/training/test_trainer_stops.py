"""A training whose batches do not come: what it has learnt is saved."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from selfpatch.checkpoints.checkpoint_store import load_checkpoint
from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.logging import LoggingConfig
from selfpatch.config.sections import CheckpointConfig, OptimizerConfig, WatchConfig
from selfpatch.data.workers import LoaderError
from selfpatch.training.factory import make_schedule
from selfpatch.training.optim import make_optimizer
from selfpatch.training.student_teacher import StudentTeacher
from selfpatch.training.trainer import train
from tests.helpers.tiny import tiny_config, tiny_student_teacher, tiny_views


class Batches:
    """A loader that makes the batches of the steps before `num_good`, and then meets a fault."""

    batch_size = 4

    def __init__(self, num_good: int, fault: Any) -> None:
        self.bad: dict[str, str] = {}
        self._num_good, self._fault = num_good, fault

    def steps(self, first: int, last: int) -> Iterator[list[Any]]:
        for step in range(first, last):
            if step == self._num_good:
                self._fault()
            yield [tiny_views(4, seed=step)]


def fail() -> None:
    raise LoaderError("a loader process was ended by SIGKILL")


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    pytest.fail("the batch is not waited for")


def trained(run: RunDirectory, loader: Batches) -> tuple[int, StudentTeacher]:
    config = tiny_config(epochs=2, optimizer={"freeze_last_layer_epochs": 0})
    student_teacher = tiny_student_teacher()
    code = train(
        student_teacher, loader, make_schedule(config, steps_per_epoch=3),
        make_optimizer(student_teacher, OptimizerConfig()), run,
        device=torch.device("cpu"), seed=0, watch=WatchConfig(), checkpoint=CheckpointConfig(),
        logging=LoggingConfig(loggers=()),
    )  # fmt: skip
    return code, student_teacher


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run [a]", {})


def test_a_loader_that_fails_loses_no_step(run: RunDirectory) -> None:
    with pytest.raises(LoaderError, match=r"SIGKILL; continue with: selfpatch resume '.*/run \[a\]'$"):
        trained(run, Batches(2, fail))
    newest = run.checkpoints.newest()
    assert newest is not None
    assert load_checkpoint(newest)["step"] == 2
    # A resumed run that fails before its first step has nothing new to save.
    with pytest.raises(LoaderError, match="; continue with: "):
        trained(run, Batches(2, fail))
    assert len(list(run.checkpoints.folder.iterdir())) == 1
    _, resumed = trained(run, Batches(-1, fail))
    _, undisturbed = trained(RunDirectory.create(run.path.parent / "other", {}), Batches(-1, fail))
    states = resumed.state_dict(), undisturbed.state_dict()
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_a_loader_that_fails_at_once_leaves_no_checkpoint(run: RunDirectory) -> None:
    with pytest.raises(LoaderError, match=r"^a loader process was ended by SIGKILL$"):
        trained(run, Batches(0, fail))
    assert run.checkpoints.newest() is None


@pytest.mark.parametrize("num_good", [0, 4])
def test_a_signal_while_a_batch_is_awaited_saves_and_stops(run: RunDirectory, num_good: int) -> None:
    assert trained(run, Batches(num_good, interrupt))[0] == signal.SIGTERM
    newest = run.checkpoints.newest()
    assert newest is not None
    assert load_checkpoint(newest)["step"] == num_good
