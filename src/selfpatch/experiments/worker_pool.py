"""Pool of worker processes, one for each slot, that run jobs and end with the process that started them.

A worker that is killed loses its own job only. When the parent process is killed, the workers notice and end within a
moment, so that a study can be started again at once.
"""

import contextlib
import multiprocessing
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

J = TypeVar("J")
S = TypeVar("S")
Execute = Callable[[J, S], list[str]]
"""Runs a job in a slot and returns a sentence for each failure. It is called in another process, so that it, jobs and
slots must be picklable. SystemExit ends the process."""

SHUTDOWN_SECONDS = 120.0
"""Time for a job to save its state when it is asked to stop."""


def run_jobs(
    jobs: Sequence[J],
    execute: Execute[J, S],
    slots: Sequence[S],
    logs: Path,
    started: Callable[[J, S], None] = lambda job, slot: None,
) -> Generator[tuple[J, list[str]]]:
    """Run jobs in their order, and yield each one when it has ended, with a sentence for each failure.

        each slot takes the next job when it is free; `started` is called
        a job fails if it raises or its process is killed; the other jobs continue

    The processes write their output to worker-0.log and so on, in the folder `logs`.
    """
    waiting, free = list(jobs), list(range(len(slots)))
    workers: dict[int, tuple[BaseProcess, Connection]] = {}  # by slot
    running: dict[Any, tuple[int, J]] = {}  # slot and job by connection
    try:
        while waiting or running:
            while waiting and free:
                slot, job = free.pop(0), waiting.pop(0)
                if slot not in workers:
                    workers[slot] = _start_worker(execute, slots[slot], _log(logs, slot))
                process, connection = workers[slot]
                running[connection] = slot, job
                started(job, slots[slot])
                with contextlib.suppress(BrokenPipeError):  # a dead process is noticed below
                    connection.send(job)
            for ready in wait(list(running)):
                slot, job = running.pop(ready)
                process, connection = workers[slot]
                try:
                    failures, usable = connection.recv()
                except (EOFError, ConnectionResetError):
                    process.join(SHUTDOWN_SECONDS)
                    failures, usable = [_death(process.exitcode or 0, _log(logs, slot))], False
                if not usable:
                    process.join(SHUTDOWN_SECONDS)
                    del workers[slot]
                free.insert(0, slot)
                yield job, failures
    finally:  # a training saves its state after its step
        for process, _ in workers.values():
            process.terminate()
        for process, _ in workers.values():
            process.join(SHUTDOWN_SECONDS)
            process.kill()


def _log(logs: Path, slot: int) -> Path:
    return logs / f"worker-{slot}.log"


def _death(code: int, log: Path) -> str:
    reason = f"signal {-code}" if code < 0 else f"exit code {code}"
    return f"its process ended by {reason}, perhaps for lack of memory; its last output is in {log}"


def _start_worker(execute: Execute[J, S], slot: S, log: Path) -> tuple[BaseProcess, Connection]:
    # A forked process could use neither CUDA nor the threads of this one.
    context = multiprocessing.get_context("spawn")
    connection, worker_connection = context.Pipe()
    process = context.Process(target=_work, args=(worker_connection, execute, slot, log))
    process.start()
    worker_connection.close()
    return process, connection


def _work(connection: Connection, execute: Execute[J, S], slot: S, log: Path) -> None:
    """Run one job after another in a worker process.

    After an unexpected error the device may be in any state, in which all later jobs would fail: the process ends.
    """
    os.setpgrp()  # Ctrl-C reaches the parent process only, which then stops this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _print_to(log)
    usable = True
    while usable:
        try:
            job = connection.recv()
        except EOFError:
            return
        failures, usable = outcome_of(execute, job, slot)
        connection.send((failures, usable))


def outcome_of(execute: Execute[J, S], job: J, slot: S) -> tuple[list[str], bool]:
    """Run a job; return a sentence for each failure, and whether the process can go on."""
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
    parent.join()
    os._exit(1)


def _print_to(log: Path) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # keeps the last lines before a kill
    print(time.strftime("--- %Y-%m-%d %H:%M:%S"), flush=True)
