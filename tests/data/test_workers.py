"""Loader processes: results in order, and one sentence in bounded time when a process fails."""

from __future__ import annotations

import errno
import faulthandler
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from selfpatch.data import workers
from selfpatch.data.workers import LoaderError, computed_ahead, free_shared_memory


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "GRACE", 0.2)


def squares(number: int) -> Tensor:
    return torch.full((3, 4), number) ** 2


@pytest.mark.parametrize(("count", "requests"), [(0, 5), (1, 5), (3, 2), (3, 20), (2, 0)])
def test_results_come_in_order_of_the_requests(count: int, requests: int) -> None:
    found = [int(result[0, 0]) for result in computed_ahead(squares, iter(range(requests)), count)]
    assert found == [number**2 for number in range(requests)]
    assert not multiprocessing.active_children()


def test_requests_are_read_only_a_little_ahead() -> None:
    read = []
    results = computed_ahead(squares, (read.append(number) or number for number in range(100)), 2)
    next(results)
    assert len(read) == 2 * workers.AHEAD + 1
    results.close()
    assert not multiprocessing.active_children()


def raise_value_error(number: int) -> int:
    raise ValueError(f"sample {number} cannot be read")


def raise_os_error(number: int) -> int:
    raise PermissionError(errno.EACCES, "Permission denied", "photo.png")


def run_out_of_memory(number: int) -> int:
    raise MemoryError


def run_out_of_shared_memory(number: int) -> int:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


def run_out_of_files(number: int) -> Tensor:
    lowest_free = os.open(os.devnull, os.O_RDONLY)  # all numbers below it are taken
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, 4096))
    return squares(number)


def be_killed(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def hit_the_end_of_shared_memory(number: int) -> int:
    faulthandler.disable()  # pytest's
    os.kill(os.getpid(), signal.SIGBUS)
    return number


def leave(number: int) -> int:
    os._exit(3)


def hang(number: int) -> int:
    time.sleep(600)
    return number


@pytest.mark.parametrize(
    ("load", "kind", "sentence"),
    [
        (raise_value_error, ValueError, "^sample 0 cannot be read$"),
        (raise_os_error, LoaderError, "^Permission denied: photo.png$"),
        (run_out_of_memory, LoaderError, "no memory left; use fewer of them, or use --workers 0$"),
        (run_out_of_shared_memory, LoaderError, "no shared memory left.*--shm-size.*--workers 0$"),
        (run_out_of_files, LoaderError, "too many open files; allow more with `ulimit -n`, or use --workers 0$"),
        (be_killed, LoaderError, "ended by SIGKILL, perhaps by the system for lack of memory.*--workers 0$"),
        (hit_the_end_of_shared_memory, LoaderError, "no shared memory left"),
        (leave, LoaderError, "ended by itself .exit code 3.; use --workers 0 to see why$"),
        (hang, LoaderError, "gave nothing for 0.2 s"),
    ],
)
def test_a_process_that_fails_ends_the_iteration_by_a_sentence(
    load: Callable[[int], int], kind: type[Exception], sentence: str
) -> None:
    with pytest.raises(kind, match=sentence) as raised:
        list(computed_ahead(load, range(4), 2, patience=0.2 if load is hang else 60))
    assert type(raised.value) is kind
    assert not multiprocessing.active_children()


def test_a_bug_in_a_process_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"^ZeroDivisionError: .* \(in a loader process\)") as raised:
        list(computed_ahead((1).__floordiv__, range(1), 1))
    assert "Traceback" in raised.value.__notes__[0]


def test_a_process_that_hangs_does_not_outlive_the_iteration() -> None:
    results = computed_ahead(lambda number: hang(number) if number else number, range(2), 2)
    assert next(results) == 0
    assert len(multiprocessing.active_children()) == 2
    results.close()
    assert not multiprocessing.active_children()


def freeze(number: int) -> Tensor:
    """The first process is slow, so that meanwhile the second one answers and then freezes."""
    if number == 0:
        time.sleep(0.3)
    if number == 3:
        os.kill(os.getpid(), signal.SIGSTOP)
    return squares(number)


def test_a_process_that_freezes_with_results_on_their_way_ends_the_iteration() -> None:
    results = computed_ahead(freeze, range(4), 2, patience=1)
    assert int(next(results)[0, 0]) == 0
    with pytest.raises(LoaderError, match=r"gave nothing for 1 s"):
        list(results)
    assert not multiprocessing.active_children()


def test_no_process_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(workers, "_Worker", refuse)
    with pytest.raises(LoaderError, match=r"cannot start a loader process .Resource temporarily.*--workers 0$"):
        list(computed_ahead(squares, range(1), 1))


def test_shared_memory_is_unknown_on_some_systems(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(workers, "SHARED_MEMORY", tmp_path)
    assert free_shared_memory() == os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    monkeypatch.setattr(workers, "SHARED_MEMORY", tmp_path / "none")
    assert free_shared_memory() is None
