"""Loader processes, which compute results ahead; one that fails ends the iteration in bounded time by one sentence.

::

    request i goes to process i modulo their number, which holds `AHEAD` requests at most
    the oldest result is awaited, from its own process alone:
        it arrives; or the process tells of an error, or is dead, or does not answer in time

A process sends its results itself. (torch's DataLoader sends them by a thread, whose errors nobody sees.)
"""

import contextlib
import errno
import itertools
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from multiprocessing import connection, util
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import multiprocessing

from selfpatch.core.failures import sentence_of
from selfpatch.core.signals import PREEMPTION
from selfpatch.core.text import one_line

Request = TypeVar("Request")
T = TypeVar("T")

AHEAD = 2
"""Requests that a process holds at once."""
PATIENCE = 600.0
"""Seconds to wait for one result."""
GRACE = 1.0
"""Seconds in which processes may end by themselves."""
ORPHAN_CHECK = 2.0
"""Seconds after which an idle process looks whether its parent is still there."""
SHARED_MEMORY = Path("/dev/shm")
"""File system of the memory that processes share (Linux)."""


class LoaderError(OSError):
    """A loader process failed, because the machine lacks memory or files, or it hangs."""


def computed_ahead(
    load: Callable[[Request], T],
    requests: Iterable[Request],
    workers: int,
    *,
    patience: float = PATIENCE,
    option: str = "--workers 0",
) -> Generator[T]:
    """Yield `load(request)` for each request, in order; close the generator if it is not read to its end.

    Args:
        load: function that runs in the processes. A ValueError in it is raised here with the same words.
        requests: read as far as the processes are ahead.
        workers: number of processes; 0 computes here, on demand.
        patience: seconds to wait for one result; 0 waits for ever.
        option: what the user has to say for 0 processes.

    Raises:
        LoaderError: a process cannot be started, is killed, has no memory or files left, or does not answer.
    """
    if not workers:
        yield from map(load, requests)
        return
    with _Pool(load, workers, option) as pool:
        remaining, awaited = iter(requests), deque[_Worker]()
        # Requests first: `zip` would take a worker, of which there are infinitely many, without having a request.
        for request, worker in zip(itertools.islice(remaining, AHEAD * workers), pool.in_turns(), strict=False):
            worker.send(request)
            awaited.append(worker)
        while awaited:
            worker = awaited.popleft()
            result = worker.receive(patience)
            for request in itertools.islice(remaining, 1):
                worker.send(request)
                awaited.append(worker)
            yield result


def free_shared_memory() -> int | None:
    """Return the number of free bytes that processes can share, or None if the system does not tell."""
    try:
        status = os.statvfs(SHARED_MEMORY)
    except (OSError, AttributeError):
        return None
    return status.f_bavail * status.f_frsize


class _Pool:
    """The processes, which end with the `with` block, or with this process."""

    def __init__(self, load: Callable[[Any], Any], workers: int, option: str) -> None:
        self._workers: list[_Worker] = []
        util.get_temp_dir()  # made here, it is this process that removes it: a killed one would not
        # At the end of this process `multiprocessing` waits for its children, also for one that hangs.
        self._at_exit = util.Finalize(self, _end, args=(self._workers,), exitpriority=100)
        try:
            for _ in range(workers):
                self._workers.append(_Worker(load, option))
        except OSError as error:
            self._at_exit()
            raise LoaderError(f"cannot start a loader process ({error.strerror}); use {option}") from None

    def __enter__(self) -> "_Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self._at_exit()

    def in_turns(self) -> Iterator["_Worker"]:
        return itertools.cycle(self._workers)


class _Worker:
    """One loader process, seen from outside."""

    def __init__(self, load: Callable[[Any], Any], option: str) -> None:
        context = multiprocessing.get_context()
        self.connection, other_end = context.Pipe()
        self._option = option
        arguments = other_end, load, os.getpid()
        self.process: BaseProcess = context.Process(target=_work, args=arguments, daemon=True, name="loader")
        self.process.start()
        other_end.close()

    def send(self, request: Any) -> None:
        with contextlib.suppress(OSError):  # a dead process is noticed when its result is awaited
            self.connection.send(request)

    def receive(self, patience: float) -> Any:
        if not connection.wait([self.connection, self.process.sentinel], patience or None):
            raise LoaderError(self._silence(patience))
        # A process that is frozen may have sent a result, but not give out the memory that it lies in: its end does.
        silent = threading.Event()

        def give_up() -> None:
            silent.set()
            self.process.kill()

        watchdog = threading.Timer(patience, give_up)
        watchdog.daemon = True
        if patience:
            watchdog.start()
        try:
            failure, result = self.connection.recv()
        except (OSError, EOFError, RuntimeError) as error:
            raise LoaderError(self._silence(patience) if silent.is_set() else self._broken(error)) from None
        finally:
            watchdog.cancel()
        if failure is not None:
            raise self._error(*failure)
        return result

    def _silence(self, patience: float) -> str:
        return (
            f"a loader process gave nothing for {patience:g} s: reading hangs, e.g. on a network drive, or is very "
            f"slow; check the drive, or use {self._option}"
        )

    def _broken(self, error: Exception) -> str:
        """Return why a result could not be received: this process lacks something, or the other one is dead."""
        number = getattr(error, "errno", None)
        if "ancillary data" in str(error):  # files that are sent cannot be opened
            number = errno.EMFILE
        return self._lack(number) if number in _LACKS else self._death()

    def _error(self, kind: str, sentence: str, number: int | None, details: str) -> Exception:
        if kind == "input":
            return ValueError(sentence)
        if number in _LACKS:
            return LoaderError(self._lack(number))
        if kind == "system":
            return LoaderError(sentence)
        error = RuntimeError(f"{sentence} (in a loader process)")
        error.add_note(details)
        return error

    def _lack(self, number: int | None) -> str:
        return f"{_LACKS[number]()}, or use {self._option}"

    def _death(self) -> str:
        self.process.join(GRACE)
        code = self.process.exitcode
        if code == -signal.SIGBUS:
            return self._lack(errno.ENOSPC)
        if code is None or code >= 0:
            return f"a loader process ended by itself (exit code {code}); use {self._option} to see why"
        name = signal.Signals(-code).name
        reason = "perhaps by a damaged image" if -code == signal.SIGSEGV else "perhaps by the system for lack of memory"
        return f"a loader process was ended by {name}, {reason}; use fewer processes, or {self._option}"


def _end(workers: list[_Worker]) -> None:
    """Let processes end; kill those that are busy for long, which nothing else would end."""
    for worker in workers:
        worker.send(None)
    until = time.monotonic() + GRACE
    for worker in workers:
        worker.process.join(max(0.0, until - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join(GRACE)
        worker.connection.close()
    workers.clear()


def _no_shared_memory() -> str:
    free = free_shared_memory()
    rest = "" if free is None else f" ({SHARED_MEMORY} has {free / 2**20:.3g} MB free)"
    return f"the loader processes have no shared memory left{rest}; allow more, e.g. with `docker run --shm-size 8g`"


_LACKS: dict[int | None, Callable[[], str]] = {
    errno.ENOSPC: _no_shared_memory,
    errno.ENOMEM: lambda: "the loader processes have no memory left; use fewer of them",
    errno.EMFILE: lambda: "a loader process has too many open files; allow more with `ulimit -n`",
    errno.ENFILE: lambda: "the system has too many open files; close other programs",
}
"""Sentence on each resource that may be used up, by the number of the system's error."""


def _work(end: Any, load: Callable[[Any], Any], parent: int) -> None:
    """Answer requests until None arrives or the parent is gone."""
    # These signals reach every process of a job, but the trainer needs batches until it has saved.
    for number in (signal.SIGINT, signal.SIGTERM, *PREEMPTION):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    while True:
        while not end.poll(ORPHAN_CHECK):
            if os.getppid() != parent:
                return
        try:
            request = end.recv()
        except EOFError:
            return
        if request is None:
            return
        try:
            end.send((None, load(request)))
        except Exception as error:
            end.send((_told(error), None))


def _told(error: Exception) -> tuple[str, str, int | None, str]:
    """Return what `_Worker._error` takes: kind, sentence, number of the system's error, and the traceback."""
    number = getattr(error, "errno", None)
    if isinstance(error, MemoryError):
        number = errno.ENOMEM
    elif isinstance(error, RuntimeError) and "shared memory" in str(error):  # torch's has no number
        number = next((n for n in (errno.ENOMEM, errno.EMFILE, errno.ENFILE) if f"({n})" in str(error)), errno.ENOSPC)
    if isinstance(error, ValueError):
        return "input", str(error), None, ""
    if isinstance(error, OSError):
        return "system", sentence_of(error), number, ""
    return "bug", f"{type(error).__name__}: {one_line(error)}", number, traceback.format_exc()
