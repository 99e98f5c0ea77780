"""Two real processes that stay alive for a session of tests and compute together over gloo."""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import current_process
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.helpers.warm_fork import warm_server

PATIENCE = 240
"""Seconds for an answer, the start of the processes among them, on cores that do other work."""


class WorkerPool:
    """Runs one function on every process of a group at once.

    Each is forked from a warm process and meets the others through a file, so that no port need be free.
    """

    def __init__(self, world_size: int = 2) -> None:
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            with Listener(str(folder / f"rank{rank}"), "AF_UNIX") as listener:
                here = (str(listener.address), f"file://{folder / 'meeting'}", rank, world_size)
                key = bytes(current_process().authkey)  # to open the shared memory of each other's tensors
                self._processes.append(warm_server().start(_serve, key, *here, stderr=sys.stderr))
                self._pipes.append(listener.accept())

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
            process.kill()
            process.wait()
        self._folder.cleanup()


def _serve(key: bytes, address: str, meeting: str, rank: int, world_size: int) -> None:
    current_process().authkey = key
    pipe = Client(address, "AF_UNIX")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    while True:
        function, args = pipe.recv()
        try:
            pipe.send((True, function(rank, *args)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
