"""Two packages that train in turns, each in a process of its own: one is stopped while the other takes its steps.

::

    start ours, let it take its first steps, stop it; the same with theirs
    rounds times: continue ours until it has taken `steps`, stop it; the same with theirs

A step costs the time between its end and the end of the one before, without the time for which its process was
stopped; or the CPU time of the process and of its loader processes, which other programs hardly change.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.config import Clock
from benchmarks.peers.task import Task

WARM_UP = 2
"""First steps that are not counted: loader processes start, and the optimizer allocates its moments."""
POLL = 0.05
"""Seconds between two looks at a process's log."""
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "LIGHTLY_TRAIN_EVENTS_DISABLED": "1",
    "LIGHTLY_DID_VERSION_CHECK": "True",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "WANDB_MODE": "disabled",
}
"""Environment in which no package looks for news or tells of its use."""


@dataclass(frozen=True)
class Record:
    """Content of a log: versions, threads, and the clocks at the end of each step so far."""

    versions: Mapping[str, str]
    threads: int
    times: Sequence[float]
    cpu: Sequence[float]

    @staticmethod
    def parse(text: str) -> Record | None:
        """Read what `task.StepLog` has written so far, or return None as long as there is nothing.

        Raises:
            ValueError: the lines are not those of a log.
        """
        lines = text[: text.rfind("\n") + 1].splitlines()  # a line without its end is being written
        if not lines:
            return None
        try:
            head, *steps = map(json.loads, lines)
            if [step["step"] for step in steps] != [*range(1, len(steps) + 1)]:
                raise ValueError("its steps do not count up from 1")
            times, cpu = ([float(step[clock]) for step in steps] for clock in ("time", "cpu"))
            return Record(dict(head["versions"]), int(head["threads"]), times, cpu)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the log of steps is damaged: {error}; nothing else may write into it") from None


@dataclass
class Contestant:
    """A process that trains, and is stopped between its turns; use it as a context."""

    name: str
    command: Sequence[str]
    task: Task
    patience: float
    turns: list[tuple[float, float]] = field(default_factory=list)  # begin and end of each, by the monotonic clock
    counted: list[int] = field(default_factory=list)  # steps taken at the end of each turn

    def __enter__(self) -> Contestant:
        """Start the process, and stop it once it has warmed up."""
        folder = Path(self.task.folder)
        caches = {name: str(folder / "cache") for name in ("SPT_CACHE_DIR", "LIGHTLY_TRAIN_CACHE_DIR")}
        self._printed = (folder / "printed.txt").open("w")
        began = time.monotonic()
        self._process = subprocess.Popen(
            [*self.command, self.task.to_json()],
            env=os.environ | OFFLINE | caches,
            stdin=subprocess.DEVNULL,
            stdout=self._printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its loader processes are stopped and ended with it
        )
        try:
            self._run_until(WARM_UP, began)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End the process, and its loader processes with it."""
        for number in (signal.SIGCONT, signal.SIGKILL):
            self._signal(number)
        self._process.wait()
        self._printed.close()

    def take(self, steps: int) -> None:
        """Let the process take some steps more."""
        began = time.monotonic()
        self._signal(signal.SIGCONT)
        self._run_until(self.counted[-1] + steps, began)

    def record(self) -> Record:
        """Return the log as it is.

        Raises:
            ValueError: it is damaged, or the process has ended before it wrote any.
        """
        log = Path(self.task.log)
        record = Record.parse(log.read_text() if log.exists() else "")
        return record or Record({}, 0, [], [])

    def seconds_per_step(self, clock: Clock) -> list[float]:
        """Return the mean time of a step in each turn after the warm-up."""
        record = self.record()
        at = [_active(self.turns, t) for t in record.times] if clock == "wall" else record.cpu
        return [(at[b - 1] - at[a - 1]) / (b - a) for a, b in itertools.pairwise(self.counted)]

    def _run_until(self, steps: int, began: float) -> None:
        while (taken := len(self.record().times)) < steps:
            if self._process.poll() is not None:
                raise ValueError(f"{self.name} ended with code {self._process.returncode}: {self._last_words()}")
            if time.monotonic() - began > self.patience:
                raise ValueError(f"{self.name} took fewer than {steps} steps in {self.patience:g} s; raise --patience")
            time.sleep(POLL)
        self._signal(signal.SIGSTOP)
        self.turns.append((began, time.monotonic()))
        self.counted.append(taken)

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, number)

    def _last_words(self) -> str:
        lines = (Path(self.task.folder) / "printed.txt").read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def _active(turns: Sequence[tuple[float, float]], t: float) -> float:
    """Return for how long a process had run at time `t`."""
    ended = bisect_left([end for _, end in turns], t)
    before = sum(end - begin for begin, end in turns[:ended])
    return before + (max(0.0, t - turns[ended][0]) if ended < len(turns) else 0.0)


def race(contestants: Mapping[str, Contestant], *, rounds: int, steps: int, clock: Clock) -> dict[str, Any]:
    """Let processes take turns; return the seconds of a step in each round and what the logs say, by name."""
    for _ in range(rounds):
        for contestant in contestants.values():
            contestant.take(steps)
    seconds = {name: contestant.seconds_per_step(clock) for name, contestant in contestants.items()}
    records = {name: contestant.record() for name, contestant in contestants.items()}
    return {"seconds": seconds, "records": records}
