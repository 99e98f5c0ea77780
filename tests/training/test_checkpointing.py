"""A training goes on from its checkpoint with other processes, in another format and sharded otherwise."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selfpatch.checkpoints.checkpoint_store import load_checkpoint
from selfpatch.checkpoints.load import load_encoder
from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.checkpoints.sharded import ShardedTensors
from selfpatch.config.logging import LoggingConfig
from selfpatch.config.sections import CheckpointConfig, OptimizerConfig, WatchConfig
from selfpatch.core.distributed import rank, world_size
from selfpatch.data.workers import LoaderError
from selfpatch.training.anchor import anchor_weights
from selfpatch.training.checkpointing import first_difference
from selfpatch.training.factory import make_schedule
from selfpatch.training.optim import make_optimizer
from selfpatch.training.parallel import gathered, shard
from selfpatch.training.trainer import train
from tests.helpers.disk import largest_file
from tests.helpers.tiny import movement_error, part_of, snapshot, tiny_config, tiny_student_teacher, tiny_views
from tests.helpers.workers import WorkerPool

BATCH, STEPS = 4, 4


class Batches:
    """This process's share of each batch, up to a step at which the loader fails."""

    batch_size = BATCH

    def __init__(self, fails_at: int | None) -> None:
        self.bad: dict[str, str] = {}
        self._fails_at = fails_at

    def steps(self, first: int, last: int) -> Iterator[list[Any]]:
        share = BATCH // world_size()
        for step in range(first, last):
            if step == self._fails_at:
                raise LoaderError("a loader process was ended by SIGKILL")
            yield [part_of(tiny_views(BATCH, seed=step), slice(rank() * share, (rank() + 1) * share))]


def trained(
    _: int, path: Path, parallel: str, checkpoint: dict[str, Any], fails_at: int | None = None
) -> dict[str, Any] | None:
    """Train to the end or until the loader fails, and return the whole state on the main process."""
    config = tiny_config(epochs=2, optimizer={"freeze_last_layer_epochs": 0, "base_lr": 2.0})
    student_teacher = tiny_student_teacher()
    if parallel == "fsdp":
        shard(student_teacher, torch.device("cpu"), None)
    optimizer = make_optimizer(student_teacher, OptimizerConfig(name="sgd"))
    with pytest.raises(LoaderError) if fails_at else contextlib.nullcontext():
        train(
            student_teacher, Batches(fails_at), make_schedule(config, steps_per_epoch=STEPS // 2), optimizer,
            RunDirectory.open(path), device=torch.device("cpu"), seed=0, watch=WatchConfig(),
            checkpoint=CheckpointConfig(**checkpoint), logging=LoggingConfig(loggers=()),
        )  # fmt: skip
    return gathered({"network": student_teacher.state_dict(), "optimizer": optimizer.state_dict()})


def train_with(pool: WorkerPool, processes: int, *args: Any) -> dict[str, Any]:
    return (pool.run(trained, *args) if processes == 2 else [trained(0, *args)])[0]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", {})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The state of one process that trains to the end."""
    path = RunDirectory.create(tmp_path_factory.mktemp("runs") / "undisturbed", {}).path
    return trained(0, path, "ddp", {})


def momentum(state: dict[str, Any]) -> dict[str, Tensor]:
    return {str(number): values["momentum_buffer"] for number, values in state["optimizer"]["state"].items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, "fsdp", "auto"), (1, "ddp", "auto")),
        ((1, "ddp", "file"), (2, "fsdp", "sharded")),
        ((2, "fsdp", "file"), (2, "ddp", "sharded")),
        ((2, "ddp", "sharded"), (2, "fsdp", "auto")),
        ((1, "ddp", "sharded"), (2, "ddp", "file")),
    ],
    ids=str,
)
def test_a_training_goes_on_with_other_processes_and_formats(
    pool: WorkerPool, run: RunDirectory, undisturbed: dict[str, Any], before: Any, after: Any
) -> None:
    for (processes, parallel, form), fails_at in ((before, STEPS // 2), (after, None)):
        state = train_with(pool, processes, run.path, parallel, {"format": form, "every_steps": 1}, fails_at)
        newest = run.checkpoints.newest()
        assert newest is not None
        assert newest.is_dir() == (form == "sharded" or (form == "auto" and parallel == "fsdp"))
        assert load_checkpoint(newest)["step"] == (fails_at or STEPS)
    floats = {name: tensor for name, tensor in undisturbed["network"].items() if tensor.is_floating_point()}
    assert movement_error(snapshot(tiny_student_teacher()), state["network"], floats) < 1e-3
    for name, expected in momentum(undisturbed).items():
        torch.testing.assert_close(momentum(state)[name], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_sharded_checkpoint_holds_no_pickle_and_is_read_as_weights(pool: WorkerPool, run: RunDirectory) -> None:
    state = train_with(pool, 2, run.path, "fsdp", {"every_steps": 1, "keep": 2})
    steps = [step for step, _ in run.checkpoints.all()]
    assert steps == [STEPS - 1, STEPS]
    newest = run.checkpoints.newest()
    assert newest is not None
    assert {path.suffix for path in newest.iterdir()} == {".json", ".safetensors"}
    network = load_checkpoint(newest)["pretrainer"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardedTensors, "__getitem__", pytest.fail)
        twin = tiny_student_teacher()
        assert first_difference(twin, network) is None, "shapes are known without the tensors"
        checkpoint = {"pretrainer": network, "anchor_shape": twin.student.backbone.config.to_dict()}
        assert (weights := anchor_weights("named", checkpoint)) is not None
        assert weights.state == {}, "tensors of others are not read"
    assert all(torch.equal(network[name], tensor) for name, tensor in state["network"].items())
    encoder, _ = load_encoder(str(newest))
    expected = state["network"]["teacher.backbone.trunk.blocks.1.mlp.fc2.weight"]
    assert torch.equal(encoder.backbone.get_parameter("trunk.blocks.1.mlp.fc2.weight"), expected)
    # Damaged ones are passed over: the one before is whole.
    files = sorted(newest.glob("*.safetensors"))
    files[1].write_bytes(files[1].read_bytes()[:-4])
    with pytest.warns(UserWarning, match=r"bytes, and \d+ were written"):
        assert run.checkpoints.newest() == run.checkpoints.all()[0][1]
    files[1].unlink()
    with pytest.warns(UserWarning, match="has 0 bytes"):
        assert run.checkpoints.newest() == run.checkpoints.all()[0][1]


def test_names_in_a_description_leave_no_folder(run: RunDirectory) -> None:
    """Sizes are compared by name alone, so that no path is made of them."""
    folder = run.checkpoints.folder / "step-00000003"
    folder.mkdir()
    (folder / "checkpoint.json").write_text(json.dumps({"files": {"../../config.yaml": 3}, "param_groups": []}))
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(ValueError, match=r"no checkpoint in .* \(1 there\)"),
    ):
        run.checkpoints.newest()


def full_disk(_: int, path: Path) -> str:
    """Save once, then find the disk full on the second process."""
    with pytest.raises(OSError, match="cannot write") as error, largest_file(20_000 if rank() == 1 else 1 << 30):
        trained(0, path, "fsdp", {"every_steps": 1})
    return str(error.value)


def test_a_full_disk_of_one_process_ends_all_and_leaves_no_part(pool: WorkerPool, run: RunDirectory) -> None:
    for sentence in pool.run(full_disk, run.path):
        assert "what was written before is intact; make room" in sentence
    assert run.checkpoints.all() == []
    run.remove_partial_files()
    assert list(run.checkpoints.folder.iterdir()) == []
