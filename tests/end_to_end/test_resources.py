"""A training needs no network, and its memory stays as it is after the first steps."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from selfpatch.training import trainer
from tests.helpers.command_line import TINY, environment, program, write_photos
from tests.helpers.warm_fork import warm_server

pytestmark = pytest.mark.slow
NO_NETWORK = 99
PAGE = os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    photos = write_photos(tmp_path / "photos", 42)  # 10 steps of 4 an epoch
    return ["pretrain", *TINY, "--data", str(photos), "--out", str(tmp_path / "run")]


def without_network(function: Callable[..., int], *args: Any) -> int:
    """Call a function, and end the process at its first attempt to reach another machine."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        asks = event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
        if asks or (event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple)):
            print(event, args, file=sys.stderr, flush=True)
            os._exit(NO_NETWORK)

    sys.addaudithook(hook)
    return function(*args)


def reach_out() -> int:
    with socket.create_connection(("127.0.0.1", 9), 1):
        return 0


def test_an_attempt_is_noticed() -> None:
    done = warm_server().run(without_network, reach_out)
    assert done.returncode == NO_NETWORK
    assert "socket." in done.stderr


def test_a_training_reaches_no_other_machine(words: list[str], tmp_path: Path) -> None:
    surroundings = {"environment": environment(tmp_path / "cache")}
    done = warm_server().run(
        without_network, program, [*words, "--epochs", "1", "--loader.workers", "1"], **surroundings
    )
    assert done.returncode == 0, done.stderr


def measured(words: Sequence[str]) -> int:
    """Run the command line, and write the resident memory after each step, in bytes, to memory.txt."""
    step = trainer.training_step

    def measure(*args: Any, **options: Any) -> Any:
        outcome = step(*args, **options)
        with open("memory.txt", "a") as file, open("/proc/self/statm") as pages:
            print(int(pages.read().split()[1]) * PAGE, file=file)
        return outcome

    trainer.training_step = measure  # type: ignore[assignment]
    return program(words)


def test_memory_is_flat_over_the_steps(words: list[str], tmp_path: Path) -> None:
    """100 kB that were kept at each step would add 14 MB."""
    options = ["--epochs", "20", "--loader.workers", "0", "--watch.picture-images", "0", "--watch.evaluate-every", "5"]
    done = warm_server().run(measured, [*words, *options], environment=environment(tmp_path / "cache"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    memory = [int(line) for line in (tmp_path / "memory.txt").read_text().split()]
    assert len(memory) == 200
    assert max(memory[-20:]) - max(memory[40:60]) < 10e6
