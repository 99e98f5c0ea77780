"""Trainings on one and two processes, whole and sharded, go on after a fault: {ddp, fsdp} x processes x fault."""

from __future__ import annotations

import itertools
import json
import os
import re
import resource
import signal
import socket
import tempfile
import time
from pathlib import Path
from typing import IO, Any

import pytest

from tests.helpers.command_line import TINY, environment, run, start, write_photos
from tests.helpers.elastic import agent, children
from tests.helpers.warm_fork import WarmProcess, warm_server

STEPS = 6
OPTIONS = [*TINY, *"--epochs 3 --backbone.drop-path 0 --loader.workers 0 --checkpoint.every-steps 1".split()]
CELLS = list(itertools.product(("ddp", "fsdp"), (1, 2), ("same", "other"), ("kill", "terminate", "preempt", "full")))
SOME = [("fsdp", 2, "other", "kill"), ("fsdp", 2, "same", "full")]
"""Cells that the test suite tries; SELFPATCH_FAULTS=all tries all of them."""
BOUND = 60
"""Seconds in which all processes end after a fault, on cores that do other work; the tests print the true ones."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("data") / "photos", 10)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def expected(photos: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of a run on one process that nothing disturbs."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = run(cache, "pretrain", "--data", str(photos), "--out", str(out), *OPTIONS)
    assert done.returncode == 0, done.stderr
    return losses(out)


def losses(out: Path, steps: int = STEPS) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    found = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert [*found] == [*range(1, steps + 1)]
    return [*found.values()]


def wait_for_checkpoint(process: WarmProcess, out: Path, step: int = 2) -> None:
    limit = time.monotonic() + 120
    while not any(name.startswith(f"step-{step:08d}") for name in names(out / "checkpoints")):
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < limit
        time.sleep(0.01)


def names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def strike(process: WarmProcess, processes: int, fault: str) -> None:
    """Let a fault happen to the last rank; a launcher passes signals on to all."""
    ranks = children(process.pid) if processes > 1 else [process.pid]
    if fault == "kill":
        os.kill(ranks[-1], signal.SIGKILL)
    elif fault == "terminate":
        os.kill(process.pid, signal.SIGTERM)
    elif fault == "preempt":
        for pid in ranks:
            os.kill(pid, signal.SIGUSR1)
    else:  # no file can become larger, as on a disk with that much room
        for pid in ranks:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (20_000, 20_000))


def text_of(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS if os.environ.get("SELFPATCH_FAULTS") == "all" else SOME, ids=str)
def test_a_run_goes_on_after_a_fault(
    photos: Path, cache: Path, expected: list[float], tmp_path: Path, cell: tuple[str, int, str, str]
) -> None:
    (parallel, processes, then, fault), out = cell, tmp_path / "run"
    with tempfile.TemporaryFile() as stderr:
        process = start(
            cache, "pretrain", "--data", str(photos), "--out", str(out), "--parallel", parallel, *OPTIONS,
            processes=processes, stderr=stderr,
        )  # fmt: skip
        wait_for_checkpoint(process, out)
        began = time.monotonic()
        strike(process, processes, fault)
        code = process.wait(120)
        took, said = time.monotonic() - began, text_of(stderr)
    print(f"{parallel}, {processes}, {then}, {fault}: ended after {took:.2f} s with code {code}")
    assert took < BOUND
    # The launcher sends SIGTERM to the others at once, which may arrive before they notice.
    assert code in {"kill": (2, 9, 15, 143, -9), "full": (2, 15, 143), "terminate": (143,), "preempt": (138,)}[fault]
    sentences = {
        "kill": ("another process of the group has ended or was killed", "ended by SIGTERM"),
        "full": ("cannot write",),
    }.get(fault, ("stopped and saved; resume with",))
    assert (fault == "kill" and processes == 1) or any(sentence in said for sentence in sentences)
    others = processes if then == "same" else 3 - processes
    done = run(cache, "resume", str(out), processes=others)
    assert done.returncode == 0, done.stderr
    assert losses(out) == pytest.approx(expected, rel=1e-3)
    assert (out / "exported" / "backbone.safetensors").is_file()
    assert not [name for name in names(out / "checkpoints") if not re.fullmatch(r"step-\d+(\.pt)?", name)]


def launch(
    cache: Path, words: list[Any], nodes: str = "1", endpoint: str = "127.0.0.1:0", each: int = 2
) -> WarmProcess:
    # The store that torch's agents share by default is not renewed when another machine becomes the first one.
    variables = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"} if ":" in nodes else {}
    arguments = (each, nodes, endpoint, [str(word) for word in words])
    return warm_server().start(agent, *arguments, environment=environment(cache) | variables)


@pytest.mark.slow
def test_torchrun_restarts_a_run_by_itself(photos: Path, cache: Path, expected: list[float], tmp_path: Path) -> None:
    """A rank is killed; the same command goes on from the newest checkpoint."""
    out = tmp_path / "run"
    words = ["pretrain", "--data", photos, "--out", out, "--parallel", "fsdp", *OPTIONS]
    process = launch(cache, words)
    wait_for_checkpoint(process, out)
    os.kill(children(process.pid)[-1], signal.SIGKILL)
    assert process.wait(120) == 0
    assert losses(out) == pytest.approx(expected, rel=1e-3)
    starts = json.loads((out / "history.json").read_text())
    assert len(starts) == 2


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("SELFPATCH_FAULTS") != "all", reason="takes a minute; SELFPATCH_FAULTS=all runs it")
def test_a_machine_that_is_lost_comes_back(photos: Path, cache: Path, tmp_path: Path) -> None:
    """Two agents, as on two machines, meet over c10d; one is killed with its process, and a new one joins."""
    longer = [*OPTIONS, "--epochs", "20"]
    whole, out, endpoint = tmp_path / "whole", tmp_path / "run", f"127.0.0.1:{free_port()}"
    assert run(cache, "pretrain", "--data", str(photos), "--out", str(whole), *longer).returncode == 0
    words = ["pretrain", "--data", photos, "--out", out, "--parallel", "fsdp", *longer]
    stays, leaves = (launch(cache, words, "1:2", endpoint, each=1) for _ in range(2))
    wait_for_checkpoint(stays, out, 4)
    os.killpg(leaves.pid, signal.SIGKILL)
    wait_for_checkpoint(stays, out, 12)
    returns = launch(cache, words, "1:2", endpoint, each=1)
    assert stays.wait(240) == 0
    assert returns.wait(60) == 0
    assert losses(out, 40) == pytest.approx(losses(whole, 40), rel=2e-2)
    processes = [one["processes"] for one in json.loads((out / "history.json").read_text())]
    assert processes[-1] == 2
    assert 1 in processes
