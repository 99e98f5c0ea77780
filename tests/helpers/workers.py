"""Two real processes that stay alive for a session of tests and compute together over gloo."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

PATIENCE = 240
"""Seconds for an answer, the start of the processes among them, on cores that do other work."""


class WorkerPool:
    """Runs one function on every process of a group at once.

    Each is started anew, not forked, and meets the others through a file, so that no port need be free.
    """

    def __init__(self, world_size: int = 2) -> None:
        context = mp.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        meeting = f"file://{Path(self._folder.name) / 'meeting'}"
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, meeting, rank, world_size), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """`function(rank, *args)` on every process; what each returns, by rank.

        Raises:
            RuntimeError: it failed on one; the text is that process's traceback.
        """
        for pipe in self._pipes:
            pipe.send((function, args))
        results = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(PATIENCE):
                raise RuntimeError(f"process {rank} has not answered for {PATIENCE} s; it may wait for another one")
            worked, result = pipe.recv()
            if not worked:
                raise RuntimeError(f"process {rank} failed:\n{result}")
            results.append(result)
        return results

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
            process.join()
        self._folder.cleanup()


def _serve(pipe: Connection, meeting: str, rank: int, world_size: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    while True:
        function, args = pipe.recv()
        try:
            pipe.send((True, function(rank, *args)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
