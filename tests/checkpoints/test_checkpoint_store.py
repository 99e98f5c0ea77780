"""Checkpoints of a run: what is left of them after a kill, a full disk and damaged bytes."""

from __future__ import annotations

import errno
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from selfpatch.checkpoints.checkpoint_store import CheckpointStore, load_checkpoint
from selfpatch.checkpoints.run_dir import RunDirectory
from tests.helpers.disk import files_below, largest_file
from tests.helpers.warm_fork import warm_server


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def names(store: CheckpointStore) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir())


def newest_state(store: CheckpointStore) -> dict[str, Any]:
    path = store.newest()
    assert path is not None
    return load_checkpoint(path)


def saved_step(store: CheckpointStore) -> int:
    return newest_state(store)["step"]


def test_state_comes_back_exactly(store: CheckpointStore) -> None:
    assert store.newest() is None
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 7}
    path = store.save(state, step=7, keep=1)
    assert path == store.folder / "step-00000007.pt"
    loaded = newest_state(CheckpointStore(store.folder))
    torch.testing.assert_close(loaded, state, rtol=0, atol=0)
    plain = {"step": 8, "nested": {"names": ["a", "b"], "none": None, "pair": (1, 0.5)}}
    store.save(plain, step=8, keep=1)
    assert newest_state(store) == plain


def test_the_most_recent_and_the_kept_stay(store: CheckpointStore) -> None:
    for step in (5, 10, 15, 20, 25):
        store.save({"step": step}, step=step, keep=2, keep_forever=step == 10)
    assert names(store) == ["step-00000010-kept.pt", "step-00000020.pt", "step-00000025.pt"]
    assert saved_step(store) == 25
    store.save({"step": 123_456_789}, step=123_456_789, keep=1)
    assert saved_step(store) == 123_456_789


def test_a_kept_one_is_loaded_too(store: CheckpointStore) -> None:
    store.save({"step": 5}, step=5, keep=1)
    store.save({"step": 6}, step=6, keep=1, keep_forever=True)
    assert saved_step(store) == 6


def test_a_damaged_one_is_skipped_and_does_not_push_out_good_ones(store: CheckpointStore) -> None:
    for step in (1, 2):
        store.save({"step": step}, step=step, keep=2)
    newest = store.folder / "step-00000002.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"step-00000002.pt cannot be read and is skipped"):
        assert saved_step(store) == 1
    store.save({"step": 1, "again": True}, step=1, keep=1)
    assert names(store) == ["step-00000001.pt"]
    assert saved_step(store) == 1


def test_no_damage_to_any_byte_is_ever_loaded(store: CheckpointStore) -> None:
    """torch.load by itself takes changed tensors for good."""
    weights = {step: torch.full((200,), float(step)) for step in (1, 2)}
    for step in (1, 2):
        store.save({"step": step, "weights": weights[step]}, step=step, keep=2)
    newest = store.folder / "step-00000002.pt"
    intact = newest.read_bytes()
    skipped = 0
    for place in range(0, len(intact), 13):
        newest.write_bytes(intact[:place] + bytes([intact[place] ^ 0xFF]) + intact[place + 1 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = newest_state(store)
        assert torch.equal(state["weights"], weights[state["step"]])
        skipped += state["step"] == 1
    assert skipped > 50  # the rest hit padding between the archive's members


def test_all_damaged_is_an_error_not_a_fresh_start(store: CheckpointStore) -> None:
    store.save({"step": 1}, step=1, keep=1).write_bytes(b"")
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(ValueError, match=r"no checkpoint in .* \(1 there\)"),
    ):
        store.newest()


def test_nothing_is_unpickled(store: CheckpointStore) -> None:
    store.save({"step": 1}, step=1, keep=3)
    store.save({"step": 2, "code": Path}, step=2, keep=3)
    with pytest.warns(UserWarning, match="step-00000002"):
        assert saved_step(store) == 1


def test_a_full_disk_leaves_the_earlier_ones(store: CheckpointStore) -> None:
    store.save({"step": 1}, step=1, keep=1)
    before = files_below(store.folder)
    big = {"step": 2, "weights": torch.zeros(1 << 20)}
    with largest_file(1 << 20), pytest.raises(OSError, match=r"cannot write .*step-00000002.pt") as caught:
        store.save(big, step=2, keep=1)
    assert caught.value.errno == errno.EFBIG
    assert files_below(store.folder) == before
    assert saved_step(store) == 1


def save_for_ever(out: str, moment: str) -> None:
    """Save one checkpoint after another, and announce each; perhaps die before the seventh gets its name."""
    store = RunDirectory.create(out, {}).checkpoints
    replace = os.replace

    def die_before(source: Path, target: Path) -> None:
        if "step-00000007" in str(target):
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)

    if moment == "before the renaming":
        os.replace = die_before  # type: ignore[assignment]
    for step in range(1, 100_000):
        state = {"step": step, "pretrainer": {}, "shape": {}, "weights": torch.full((500_000,), float(step))}
        store.save(state, step=step, keep=2)
        print(step, flush=True)


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["any", "before the renaming"])
def test_a_kill_leaves_the_newest_one_intact(tmp_path: Path, moment: str) -> None:
    with open(tmp_path / "announced", "wb") as announced_file:
        child = warm_server().start(save_for_ever, str(tmp_path / "run"), moment, stdout=announced_file)
    announced = tmp_path / "announced"
    while child.poll() is None:
        if num_lines(announced) >= 20:
            child.kill()
    assert child.wait() == -signal.SIGKILL
    run = RunDirectory.open(tmp_path / "run")
    store = run.checkpoints
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        state = newest_state(store)
    assert state["step"] == 6 if moment != "any" else state["step"] >= num_lines(announced) >= 20
    assert torch.equal(state["weights"], torch.full((500_000,), float(state["step"])))
    strays = list(store.folder.glob(".*"))
    assert strays or moment == "any"
    run.remove_partial_files()
    assert not list(store.folder.glob(".*"))
    assert saved_step(store) == state["step"]


def test_readable_files_that_are_no_checkpoint_of_the_run_are_passed_over(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, ["step", "pretrainer"])
    store.save({"step": 1, "pretrainer": {}}, step=1, keep=9)
    torch.save({"state_dict": {"a": torch.zeros(2)}}, tmp_path / "step-00000009.pt")
    torch.save([1, 2], tmp_path / "step-00000008.pt")
    torch.save({"step": 3, "pretrainer": {}}, tmp_path / "step-00000007.pt")  # an earlier one under another name
    with pytest.warns(UserWarning, match=r"(it is no checkpoint of a run|it is of step 3, unlike its name)") as told:
        assert store.newest() == tmp_path / "step-00000001.pt"
    assert len(told) == 3
    with pytest.warns(UserWarning, match=r"step-00000001\.pt is of another run and is skipped: another width"):
        store.pass_over(tmp_path / "step-00000001.pt", "another width")
    with (
        pytest.raises(ValueError, match=r"no checkpoint in .* \(4 there\)"),
        warnings.catch_warnings(action="ignore"),
    ):
        store.newest()
