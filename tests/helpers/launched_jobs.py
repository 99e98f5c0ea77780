"""Functions for launched jobs, which import nothing heavy, so that the processes start fast."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def leave_mark(folder: str) -> None:
    """Note the rank, and that it was called."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "TORCHELASTIC_MAX_RESTARTS")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    values = " ".join(os.environ[name] for name in names)
    with open(Path(folder) / os.environ["RANK"], "a") as file:
        file.write(f"{values} {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}\n")


def save_when_told(folder: str) -> None:
    """Wait for a signal when called for the first time, as a training does, and save; be done the second time."""
    mark = Path(folder) / os.environ["RANK"]
    if mark.exists():
        mark.write_text("saved, done")
        return
    _wait(mark, signal.SIGUSR2)


def save_the_run(command: tuple[str, ...]) -> None:
    """Wait for SIGTERM, as `resume RUN` does."""
    _wait(Path(command[1]) / os.environ["RANK"], signal.SIGTERM)


def _wait(mark: Path, expected: signal.Signals) -> None:
    told: list[int] = []
    before = signal.signal(expected, lambda number, _: told.append(number))
    mark.write_text("")
    limit = time.monotonic() + 60
    while not told and time.monotonic() < limit:
        time.sleep(0.01)
    mark.write_text("saved")
    signal.signal(expected, before)
    raise SystemExit(128 + told[0])


def fail(argument: object) -> None:
    """End with an exit code in the second process; the first one is killed, as by lack of memory."""
    if os.environ["RANK"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    print("no such image", flush=True)
    raise SystemExit(2)
