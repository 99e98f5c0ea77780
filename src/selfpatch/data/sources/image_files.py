"""Image files to read: a plain file, or an image that lies elsewhere, such as a member of a tar shard."""

import errno
import io
import os
import stat
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


class StoredImage(ABC):
    """An encoded image that is no file of its own; `str()` gives its name."""

    @abstractmethod
    def read(self) -> bytes:
        """Return the bytes of the image; raise OSError if they cannot be read."""


@dataclass(frozen=True)
class LoadedImage(StoredImage):
    """An encoded image in memory."""

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name

    def read(self) -> bytes:
        """Return the bytes of the image."""
        return self.content


@dataclass(frozen=True)
class ShardMember(StoredImage):
    """An image in an uncompressed tar, read in place; `str()` gives `shard.tar/member.jpg`."""

    shard: str  # path of the tar
    name: str  # path of the image in the tar
    offset: int  # first byte of the image in the tar
    size: int  # bytes of the image

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"

    def read(self) -> bytes:
        """Return the bytes of the image; raise OSError if the tar is missing, unreadable, or ends too early."""
        with open_regular(self.shard) as shard:  # opened each time: no handle is shared by threads, forks and pickles
            shard.seek(self.offset)
            content = shard.read(self.size)
        if len(content) < self.size:
            raise OSError(f"the shard ends after {len(content)} of its {self.size} bytes")
        return content


ImageFile = str | Path | StoredImage
"""Input of every image reader."""


class _Content(io.BytesIO):
    """Bytes of a stored image, under its name: decoders quote the `repr` of their input in errors."""

    def __init__(self, image: StoredImage) -> None:
        super().__init__(image.read())
        self._name = str(image)

    def __repr__(self) -> str:
        return repr(self._name)


def opened(file: ImageFile) -> BinaryIO:
    """Open an image file for reading bytes; raise OSError if it is missing, unreadable or no regular file."""
    return _Content(file) if isinstance(file, StoredImage) else open_regular(file)


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
