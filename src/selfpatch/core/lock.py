"""Lock on a folder: one process at a time writes into it; the system releases the lock of one that dies."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from selfpatch.core.distributed import is_main_process
from selfpatch.core.dry_run import in_dry_run

FILE = ".lock"
_held: set[Path] = set()
"""Folders that this process has locked."""


def locked_by_main(folder: str | Path | None) -> contextlib.AbstractContextManager[None]:
    """Return the lock of an output folder for the main process; the others of its group, and a dry run, need none."""
    if folder is None or in_dry_run() or not is_main_process():
        return contextlib.nullcontext()
    return locked(Path(folder))


@contextlib.contextmanager
def locked(folder: Path, advice: str = "wait until it ends, or name another --out") -> Iterator[None]:
    """Hold the lock of an existing folder, a file that names this process and is gone afterwards.

    On a file system without locks, or one that cannot be written, nothing is locked.

    Raises:
        ValueError: another process holds the lock.
    """
    real = Path(os.path.realpath(folder))
    if real in _held:  # the system would give a process its own lock once more, and release it when the file is read
        raise ValueError(_refusal(folder, f" ({_own_name()})", advice))
    try:
        number = _acquire(folder / FILE)
    except BlockingIOError:
        raise ValueError(_refusal(folder, _holder(folder / FILE), advice)) from None
    except OSError:
        yield
        return
    _held.add(real)
    try:
        os.write(number, f"{_own_name()}\n".encode())
        yield
    finally:
        _held.discard(real)
        with contextlib.suppress(OSError):
            (folder / FILE).unlink(missing_ok=True)
        os.close(number)


def _acquire(file: Path) -> int:
    while True:
        number = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # Unlike flock's, this lock is not inherited by loader processes, which may outlive a killed parent.
            fcntl.lockf(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(number, 0)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(number), os.stat(file)):
                    return number
        except PermissionError as error:  # what some systems say of a lock that is taken
            os.close(number)
            raise BlockingIOError(*error.args) from None
        except OSError:
            os.close(number)
            raise
        os.close(number)  # the holder before has removed the file meanwhile


def _own_name() -> str:
    return f"pid {os.getpid()} on {socket.gethostname()}"


def _refusal(folder: Path, holder: str, advice: str) -> str:
    return f"another process{holder} writes to {folder}; {advice}"


def _holder(file: Path) -> str:
    with contextlib.suppress(OSError):
        if name := file.read_text(encoding="utf-8", errors="replace").strip():
            return f" ({name})"
    return ""
