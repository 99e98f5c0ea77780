"""Pool of worker processes, one for each slot, that run jobs and end with the process that started them.

A worker that is killed loses its own job only. When the parent process is killed, the workers notice and end within a
moment, so that a study can be started again at once.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Generic, TypeVar

J = TypeVar("J")
S = TypeVar("S")
Execute = Callable[[J, S], list[str]]
"""Runs a job in a slot and returns a sentence for each failure. It is called in another process, so that it, jobs and
slots must be picklable. SystemExit ends the process."""

SHUTDOWN_SECONDS = 120.0
"""Time for a job to save its state when it is asked to stop."""


@dataclass
class _Worker(Generic[J, S]):
    process: BaseProcess
    connection: Connection
    slot: S
    job: J | None = None


def run_jobs(
    jobs: Sequence[J],
    execute: Execute[J, S],
    slots: Sequence[S],
    logs: Path,
    started: Callable[[J, S], None] = lambda job, slot: None,
) -> Generator[tuple[J, list[str]]]:
    """Run jobs in their order, one in each slot at a time.

        each slot takes the next job when it is free
        a job fails if it raises or its process is killed; the other jobs continue

    Args:
        jobs: the jobs.
        execute: function that runs a job, see `Execute`.
        slots: where jobs run.
        logs: folder for the output of the processes: worker-0.log and so on.
        started: called when a job begins.

    Yields:
        Each job when it has ended, with a sentence for each failure.
    """
    waiting, free = list(jobs), list(enumerate(slots))
    workers: list[_Worker[J, S]] = []
    try:
        while waiting or any(worker.job is not None for worker in workers):
            while waiting and (idle := _idle(workers, free, execute, logs)) is not None:
                idle.job = waiting.pop(0)
                started(idle.job, idle.slot)
                with contextlib.suppress(BrokenPipeError):  # a dead process is noticed below
                    idle.connection.send(idle.job)
            busy = {worker.connection: worker for worker in workers if worker.job is not None}
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                job, worker.job = worker.job, None
                assert job is not None
                try:
                    failures, usable = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    failures, usable = [_death(worker.process, logs)], False
                if not usable:
                    worker.process.join(SHUTDOWN_SECONDS)
                    workers.remove(worker)
                    free.append((int(worker.process.name), worker.slot))
                yield job, failures
    finally:
        _stop([worker.process for worker in workers])


def _idle(
    workers: list[_Worker[J, S]], free: list[tuple[int, S]], execute: Execute[J, S], logs: Path
) -> _Worker[J, S] | None:
    """Return an idle worker, or start one in a free slot; None if all slots are busy."""
    for worker in workers:
        if worker.job is None:
            return worker
    if not free:
        return None
    number, slot = free.pop(0)
    # A forked process could use neither CUDA nor the threads of this one.
    context = multiprocessing.get_context("spawn")
    connection, worker_connection = context.Pipe()
    log = logs / f"worker-{number}.log"
    process = context.Process(target=_work, args=(worker_connection, execute, slot, log), name=str(number))
    process.start()
    worker_connection.close()
    workers.append(_Worker(process, connection, slot))
    return workers[-1]


def _death(process: BaseProcess, logs: Path) -> str:
    process.join(SHUTDOWN_SECONDS)
    code = process.exitcode or 0
    reason = f"signal {-code}" if code < 0 else f"exit code {code}"
    log = logs / f"worker-{process.name}.log"
    return f"its process ended by {reason}, perhaps for lack of memory; its last output is in {log}"


def _stop(processes: Sequence[BaseProcess]) -> None:
    """Ask the processes to save their state and end; a training does so after its step."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(SHUTDOWN_SECONDS)
        process.kill()


def _work(connection: Connection, execute: Execute[J, S], slot: S, log: Path) -> None:
    """Run one job after another in a worker process."""
    os.setpgrp()  # Ctrl-C reaches the parent process only, which then stops this one
    _end_with_parent()
    _print_to(log)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        failures, usable = _try(execute, job, slot)
        connection.send((failures, usable))
        if not usable:
            return


def _try(execute: Execute[J, S], job: J, slot: S) -> tuple[list[str], bool]:
    """Return the failures of a job and whether the process is usable for the next one.

    After an unexpected error the device may be in any state, in which all later jobs would fail.
    """
    try:
        return execute(job, slot), True
    except (ValueError, OSError) as error:
        return [str(error)], True
    except Exception as error:  # a bug rather than wrong input; the log has the traceback
        traceback.print_exc()
        return [f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"], False


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _print_to(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # keeps the last lines before a kill
    print(time.strftime("--- %Y-%m-%d %H:%M:%S"), flush=True)


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM inside the context, so that it stops a study as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
