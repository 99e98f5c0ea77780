"""Opening of regular files only."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading bytes; raise OSError if it is missing, unreadable or no regular file.

    A named pipe would be waited for, and a device could be endless, or do something when it is opened.
    """
    return open(path, "rb", opener=_descriptor)


def _descriptor(path: str, flags: int) -> int:
    _require_regular(path, os.stat(path).st_mode)
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # it may have been replaced by a pipe just now
    try:
        _require_regular(path, os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(path: str, mode: int) -> None:
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # `open` refuses a folder
        raise OSError(errno.EINVAL, "it is no regular file, but a named pipe, a socket or a device", path)
