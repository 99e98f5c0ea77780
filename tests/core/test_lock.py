"""Lock on a folder: held by one process, released by the system when it dies."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from selfpatch.core import lock
from selfpatch.core.lock import FILE, locked


def in_child(work: Callable[[], None]) -> int:
    """Run a function in a forked process, and return its exit code."""
    child = os.fork()
    if child == 0:
        lock._held.clear()  # as in a process that was not forked
        try:
            work()
            os._exit(0)
        except ValueError as error:
            os._exit(3 if f"(pid {os.getppid()} on " in str(error) and "writes to" in str(error) else 4)
        finally:
            os._exit(5)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def take(folder: Path) -> None:
    with locked(folder):
        pass


def test_another_process_is_refused_while_it_is_held(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert in_child(lambda: take(tmp_path)) == 3
        with pytest.raises(ValueError, match=rf"\(pid {os.getpid()} on .*\) writes to .*; wait"):
            take(tmp_path)
        assert in_child(lambda: take(tmp_path)) == 3, "the refusal released it"
    assert list(tmp_path.iterdir()) == []
    assert in_child(lambda: take(tmp_path)) == 0


def test_it_goes_with_a_killed_holder_though_a_child_of_it_lives(tmp_path: Path) -> None:
    reader, writer = os.pipe()

    def hold() -> None:
        with locked(tmp_path):
            if (child := os.fork()) == 0:
                signal.pause()
            os.write(writer, f"{child}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(hold) == -signal.SIGKILL
    assert (tmp_path / FILE).exists()
    take(tmp_path)
    os.kill(int(os.read(reader, 20)), signal.SIGKILL)


def test_a_file_that_its_holder_removes_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the file and locking it, the holder before may end."""
    stale = []

    def lockf(number: int, flags: int) -> None:
        if not stale:
            (tmp_path / FILE).unlink()
        stale.append(number)

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with locked(tmp_path):
        assert len(stale) == 2
        assert f"pid {os.getpid()} on" in (tmp_path / FILE).read_text()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_nothing_is_locked_where_there_are_no_locks(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lockf(*_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    take(tmp_path)
    take(tmp_path / "missing")
    number = errno.EACCES  # what some systems say of a lock that is taken
    with pytest.raises(ValueError, match=r"another process.* writes to"):
        take(tmp_path)
