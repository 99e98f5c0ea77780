"""A run that is killed, stopped or spread over processes ends exactly as one that is not."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfpatch.api.interrupted import Interrupted
from selfpatch.api.pretrain import pretrain, resume
from selfpatch.training import trainer
from selfpatch.training.trainer import StepOutcome, training_step
from tests.helpers.command_line import TINY, differences, final_state, run, run_cold, start, write_photos
from tests.helpers.tiny import tiny_config
from tests.helpers.warm_fork import WarmProcess

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("SELFPATCH_KILLS", "2"))
STEPS = (
    "--epochs 5 --checkpoint.every-steps 3 --loader.workers 1 --backbone.drop-path 0.2 --packing always "
    "--watch.picture-images 0"
).split()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", 42)  # 10 steps of 4 an epoch


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def undisturbed(photos: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = run_cold(cache, "pretrain", "--data", str(photos), "--out", str(out), *TINY, *STEPS)
    assert done.returncode == 0, done.stderr
    return out


def steps_done(out: Path) -> int:
    metrics = out / "metrics.jsonl"
    return metrics.read_text().count("\n") if metrics.exists() else 0


def wait_for_steps(process: WarmProcess, out: Path, count: int) -> None:
    """Until so many more lines of metrics are there, or the run is over."""
    target, limit = steps_done(out) + count, time.monotonic() + 120
    while process.poll() is None and steps_done(out) < target and time.monotonic() < limit:
        time.sleep(0.01)


def test_kill_at_random_moments_changes_no_bit(photos: Path, cache: Path, undisturbed: Path, tmp_path: Path) -> None:
    out, rng = tmp_path / "killed", random.Random(0)
    arguments = ["pretrain", "--data", str(photos), "--out", str(out), *TINY, *STEPS]
    kills = 0
    while kills < KILLS:
        process = start(cache, *arguments)
        wait_for_steps(process, out, rng.randint(1, max(2, 50 // KILLS)))
        time.sleep(rng.uniform(0, 0.1))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        code = process.wait()
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            break
        arguments = ["resume", str(out)]
    assert kills > 0
    last = run(cache, "resume", str(out))
    assert last.returncode == 0, last.stderr
    assert differences(final_state(out), final_state(undisturbed)) == []
    assert losses(out) == losses(undisturbed)


def losses(out: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"]) for row in rows if "loss" in row]


@pytest.mark.parametrize(
    ("number", "send"),
    [(signal.SIGTERM, os.kill), (signal.SIGTERM, os.killpg), (signal.SIGINT, os.killpg)],
    ids=["terminate", "terminate-group", "interrupt-group"],
)
def test_a_signal_saves_and_the_resumed_run_is_the_same(
    photos: Path,
    cache: Path,
    undisturbed: Path,
    tmp_path: Path,
    number: signal.Signals,
    send: Callable[[int, int], None],
) -> None:
    """The signal goes to the trainer alone, as `kill` sends it, or also to its loader, as by Ctrl-C and schedulers."""
    out = tmp_path / "stopped"
    process = start(cache, "pretrain", "--data", str(photos), "--out", str(out), *TINY, *STEPS)
    wait_for_steps(process, out, 11)
    send(process.pid, number)
    assert process.wait(60) == 128 + number
    stopped_at = final_state(out)["step"]
    assert 10 <= stopped_at < 50
    resumed = run(cache, "resume", str(out), "--workers", "0")
    assert resumed.returncode == 0, resumed.stderr
    assert differences(final_state(out), final_state(undisturbed)) == []


def test_a_stop_loses_no_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that stops at a step with an evaluation makes up for it when it resumes."""
    config = tiny_config(
        data=str(write_photos(tmp_path / "photos", 22)), out=str(tmp_path / "run"), epochs=4, device="cpu",
        loader={"held_out": 2, "workers": 0}, watch={"picture_images": 0}, optimizer={"warmup_epochs": 1},
    )  # fmt: skip
    steps = itertools.count(1)

    def stopped(*args: Any, **options: Any) -> StepOutcome:
        if next(steps) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return training_step(*args, **options)

    monkeypatch.setattr(trainer, "training_step", stopped)
    with pytest.raises(Interrupted):
        pretrain(config)
    assert final_state(tmp_path / "run")["step"] == 10
    resume(tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "view_matching" in row] == [0, 5, 10, 15, 20]


def test_workers_change_no_bit(photos: Path, cache: Path, undisturbed: Path, tmp_path: Path) -> None:
    for workers in ("0", "4"):
        out = tmp_path / workers
        done = run(
            cache, "pretrain", "--data", str(photos), "--out", str(out), *TINY, *STEPS, "--loader.workers", workers
        )
        assert done.returncode == 0, done.stderr
        assert differences(final_state(out), final_state(undisturbed)) == []


def test_two_processes_equal_one_and_resume_exactly(photos: Path, cache: Path, tmp_path: Path) -> None:
    options = ["pretrain", "--data", str(photos), *TINY, *STEPS, "--backbone.drop-path", "0", "--epochs", "2"]
    for name, processes in [("one", 1), ("two", 2)]:
        done = run(cache, *options, "--out", str(tmp_path / name), processes=processes)
        assert done.returncode == 0, done.stderr
    one, two = tmp_path / "one", tmp_path / "two"
    assert [step for step, _ in losses(two)] == list(range(1, 21))
    assert [loss for _, loss in losses(two)] == pytest.approx([loss for _, loss in losses(one)], rel=1e-4)
    expected, found = (final_state(out)["pretrainer"] for out in (one, two))
    for name, value in expected.items():
        # Adam turns the rounding of a gradient that is zero into updates: of biases that a norm or softmax takes out.
        if not name.endswith("bias"):
            assert (found[name] - value).abs().max() <= 1e-3 * value.abs().max().clamp(min=1e-3), name

    out = tmp_path / "disturbed"
    process = start(cache, *options, "--out", str(out), processes=2)
    wait_for_steps(process, out, 6)
    os.kill(process.pid, signal.SIGTERM)  # torchrun passes it on, and waits until both have stopped
    process.wait(60)
    assert 5 <= final_state(out)["step"] < 20
    process = start(cache, "resume", str(out), processes=2)
    wait_for_steps(process, out, 4)
    kill_all(process)
    resumed = run(cache, "resume", str(out), processes=2)
    assert resumed.returncode == 0, resumed.stderr
    assert differences(final_state(out), final_state(two)) == []
    assert losses(out) == losses(two)


def kill_all(process: WarmProcess) -> None:
    """torchrun's processes have sessions of their own, so that the group is not enough."""
    family = [process.pid]
    for parent in family:  # grows as it is walked
        family += [child for child, its_parent in parents().items() if its_parent == parent]
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def parents() -> dict[int, int]:
    """Parent by process."""
    lines = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return {int(pid): int(parent) for pid, parent in map(str.split, lines.splitlines())}
