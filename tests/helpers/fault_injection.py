"""Faults that a command meets at a chosen writing operation: it is killed, or its disk is full or read-only.

They are injected in the process of the command itself, which needs no other rights: an audit hook sees every file that
Python opens for writing, every renaming, folder and removal. A full disk takes half of what is written into a file.
"""

from __future__ import annotations

import builtins
import errno
import io
import itertools
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from tests.helpers.command_line import program

SIGNALS = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM, "interrupt": signal.SIGINT}
DAY = 86_400


@dataclass(frozen=True)
class Fault:
    """What happens to a command, and when."""

    folder: str
    """Folder whose writing operations are counted, from 0; those of other processes of the command are not."""
    log: str
    """File that gets a line for each operation."""
    kind: str = "none"
    """kill, terminate, interrupt, kill worker, full, read-only, clock back, or none."""
    moment: int = 0
    """Operation before which it happens; of a full disk, the first file of those that `files` fits that fails."""
    files: str = ""
    """Regular expression for the files that find the disk full."""


def run_with(fault: Fault, words: Sequence[str]) -> int:
    """Run the command line with a fault, in a process of its own that ends with it."""
    # Evaluations save after each step, and jobs of a study meet the same faults, as their processes are forked.
    save_often = SimpleNamespace(monotonic=itertools.count(0, 1000).__next__)
    sys.modules["selfpatch.evaluation.probe_training"].time = save_often  # type: ignore[attr-defined]
    context = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: context  # type: ignore[assignment]
    sys.addaudithook(_Hook(fault))
    if fault.kind == "full":
        builtins.open = _Disk(fault).open  # type: ignore[assignment]
    if fault.kind == "clock back":
        now = time.time
        time.time = lambda: now() - DAY
    return program(words)


class _Hook:
    """Counts writing operations, and lets the fault happen."""

    def __init__(self, fault: Fault) -> None:
        self._fault, self._process, self._done = fault, os.getpid(), 0
        self._log = os.open(fault.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        path = _written(event, args)
        if path is None or not path.startswith(self._fault.folder):
            return
        here = os.getpid() == self._process
        if here:
            self._note(f"{event} {path}")
        if self._fault.kind == "read-only" and self._done >= self._fault.moment:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        due, self._done = here and self._done == self._fault.moment, self._done + here
        if due and self._fault.kind in SIGNALS:
            os.kill(os.getpid(), SIGNALS[self._fault.kind])
        if due and self._fault.kind == "kill worker":
            for child in multiprocessing.active_children()[:1]:
                assert child.pid is not None
                os.kill(child.pid, signal.SIGKILL)
                self._note(f"killed {child.pid}")

    def _note(self, line: str) -> None:
        os.write(self._log, f"{line}\n".encode())


def _written(event: str, args: tuple[Any, ...]) -> str | None:
    """Return the path that an event is about to write to, or None."""
    if event == "open":
        path, flags = args[0], args[2]
        if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or isinstance(path, int):
            return None
    elif event in ("os.rename", "os.mkdir", "os.remove"):
        path = args[1 if event == "os.rename" else 0]
    else:
        return None
    return os.fsdecode(path)


class _Disk:
    """A disk that is full once enough files of a kind have been opened for writing."""

    def __init__(self, fault: Fault) -> None:
        self._files, self._left = re.compile(fault.files), fault.moment
        self._open = builtins.open

    def open(self, file: Any, mode: str = "r", *args: Any, **options: Any) -> IO[Any]:
        writes = any(letter in mode for letter in "wax+")
        if not writes or isinstance(file, int) or not self._files.search(os.fsdecode(file)):
            return self._open(file, mode, *args, **options)
        self._left -= 1
        if self._left >= 0:
            return self._open(file, mode, *args, **options)
        raw = io.BufferedWriter(_Full(Path(file), mode.replace("b", "").replace("t", "")))
        return raw if "b" in mode else io.TextIOWrapper(raw, encoding="utf-8", write_through=True)


class _Full(io.FileIO):
    def write(self, data: Any) -> int:
        super().write(memoryview(data)[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fileno(self) -> int:
        raise io.UnsupportedOperation("Pillow writes through `write`, too")
