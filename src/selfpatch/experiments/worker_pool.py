"""Jobs on several devices at once: a process for each place, which ends with the one that began it.

A process that is killed takes its own job with it and no other. When this process is killed, the others notice and
end within a moment, so that a study can be begun again at once.
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
P = TypeVar("P")
Execute = Callable[[J, P], list[str]]
"""Does a job at a place, and gives a sentence for each thing that failed; called in another process, so that all of it
must be picklable. SystemExit ends the process."""

PATIENCE = 120.0
"""Seconds for a job to save itself when it is asked to stop."""


@dataclass
class _Worker(Generic[J, P]):
    process: BaseProcess
    connection: Connection
    place: P
    job: J | None = None


def run_jobs(
    jobs: Sequence[J],
    execute: Execute[J, P],
    places: Sequence[P],
    logs: Path,
    started: Callable[[J, P], None] = lambda job, place: None,
) -> Generator[tuple[J, list[str]]]:
    """Runs jobs in their order, as many at a time as there are places::

        each place takes the next job when it is free
        a job that raises, or whose process is killed, has failed; the others go on

    Args:
        jobs, places, execute: see `Execute`.
        logs: folder for what the processes print: place-0.log and so on.
        started: called when a job begins.

    Yields:
        Each job when it has ended, with the sentences that say what of it failed.
    """
    waiting, free = list(jobs), list(enumerate(places))
    workers: list[_Worker[J, P]] = []
    try:
        while waiting or any(worker.job is not None for worker in workers):
            while waiting and (idle := _idle(workers, free, execute, logs)) is not None:
                idle.job = waiting.pop(0)
                started(idle.job, idle.place)
                with contextlib.suppress(BrokenPipeError):  # that it has died is seen below
                    idle.connection.send(idle.job)
            busy = {worker.connection: worker for worker in workers if worker.job is not None}
            for connection in wait(list(busy)):
                worker = busy[connection]  # type: ignore[index]
                job, worker.job = worker.job, None
                assert job is not None
                try:
                    failures, goes_on = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    failures, goes_on = [_death(worker.process, logs)], False
                if not goes_on:
                    worker.process.join(PATIENCE)
                    workers.remove(worker)
                    free.append((int(worker.process.name), worker.place))
                yield job, failures
    finally:
        _stop([worker.process for worker in workers])


def _idle(
    workers: list[_Worker[J, P]], free: list[tuple[int, P]], execute: Execute[J, P], logs: Path
) -> _Worker[J, P] | None:
    """One that has nothing to do, begun anew where a place has none; None: all are busy."""
    for worker in workers:
        if worker.job is None:
            return worker
    if not free:
        return None
    number, place = free.pop(0)
    # Not forked: CUDA does not survive that, nor do the threads of this process.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    log = logs / f"place-{number}.log"
    process = context.Process(target=_work, args=(theirs, execute, place, log), name=str(number))
    process.start()
    theirs.close()
    workers.append(_Worker(process, ours, place))
    return workers[-1]


def _death(process: BaseProcess, logs: Path) -> str:
    process.join(PATIENCE)
    code = process.exitcode or 0
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    log = logs / f"place-{process.name}.log"
    return f"its process ended by {how}, for want of memory perhaps; what it printed last is in {log}"


def _stop(processes: Sequence[BaseProcess]) -> None:
    """Asks them to save what they do and end; a training does so at its next step."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(PATIENCE)
        process.kill()


def _work(connection: Connection, execute: Execute[J, P], place: P, log: Path) -> None:
    """The life of a process: one job after another."""
    os.setpgrp()  # Ctrl-C is for the process that began this one, which then asks this one to end
    _end_with_parent()
    _print_to(log)
    while True:
        try:
            job = connection.recv()
        except EOFError:
            return
        failures, goes_on = _tried(execute, job, place)
        connection.send((failures, goes_on))
        if not goes_on:
            return


def _tried(execute: Execute[J, P], job: J, place: P) -> tuple[list[str], bool]:
    """What failed, and whether the process can go on: after an error that nobody foresaw the device may be in any
    state, and would fail all other jobs too.
    """
    try:
        return execute(job, place), True
    except (ValueError, OSError) as error:
        return [str(error)], True
    except Exception as error:  # no mistake of the user's; the log has all of it
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
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what it printed last is to be there
    print(time.strftime("--- %Y-%m-%d %H:%M:%S"), flush=True)


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Inside, SIGTERM raises KeyboardInterrupt, so that it stops a study as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # Python lets no other one handle signals
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
