"""A process that is forked from a warm one is like one that was started anew: the tests of faults rely on it."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.command_line import run, run_cold
from tests.helpers.warm_fork import warm_server


def end(how: str) -> int | None:
    """End this process in one of several ways."""
    if how == "exit":
        sys.exit("refused")
    if how == "raise":
        raise ValueError("unforeseen")
    if how == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    print("here", Path.cwd().name, os.environ["NAME"], sys.stdin.read(), os.getsid(0) == os.getpid())
    return None if how == "return" else 7


@pytest.mark.parametrize(
    ("how", "code"), [("return", 0), ("seven", 7), ("exit", 1), ("raise", 1), ("interrupt", -2), ("die", -9)]
)
def test_ends_are_told_apart(how: str, code: int, tmp_path: Path) -> None:
    done = warm_server().run(end, how, environment={"NAME": "value"}, cwd=tmp_path)
    assert done.returncode == code
    assert done.stdout == (f"here {tmp_path.name} value  True\n" if how in ("return", "seven") else "")
    assert {"raise": "ValueError: unforeseen", "interrupt": "KeyboardInterrupt"}.get(how, "") in done.stderr


def write_large(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    path.write_bytes(bytes(2000))


def test_limits_are_of_one_process(tmp_path: Path) -> None:
    done = warm_server().run(write_large, tmp_path / "large")
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert (tmp_path / "large").stat().st_size == 1000
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def sleep() -> None:
    time.sleep(60)


def test_a_signal_ends_it(tmp_path: Path) -> None:
    process = warm_server().start(sleep)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == -signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--version"], ["pretrain", "--data", "nowhere"], ["pretend"]], ids=" ".join)
def test_the_program_says_the_same_in_a_new_process(words: list[str], tmp_path: Path) -> None:
    warm, cold = run(tmp_path, *words), run_cold(tmp_path, *words)
    assert (warm.returncode, warm.stdout, warm.stderr) == (cold.returncode, cold.stdout, cold.stderr)
