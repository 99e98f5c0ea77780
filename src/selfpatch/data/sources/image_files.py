"""Image files to read: a plain file, or an image that lies elsewhere, such as a member of a tar shard."""

import io
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from selfpatch.data.sources.ranges import read_range, read_whole
from selfpatch.data.sources.regular import open_regular
from selfpatch.data.sources.remote import is_url


class StoredImage(ABC):
    """An encoded image that is no file of its own; `str()` gives its name."""

    @property
    def is_remote(self) -> bool:
        """Return whether reading the image waits for another machine."""
        return False

    @property
    def byte_range(self) -> tuple[str, int, int, int] | None:
        """Arguments of `ranges.read_range` that give the image, or None if it is read in another way."""
        return None

    def content_of(self, span: bytes) -> bytes:
        """Return the bytes of the image from those in its range; raise OSError if they are damaged."""
        return span

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
class ContainedImage(StoredImage):
    """An image in a file that holds many; `str()` gives `file/name`."""

    file: str  # path or URL of the file
    name: str  # path of the image in the file

    def __str__(self) -> str:
        return f"{self.file}/{self.name}"

    @property
    def is_remote(self) -> bool:
        """Return whether the file lies on another machine."""
        return is_url(self.file)


@dataclass(frozen=True)
class ShardMember(ContainedImage):
    """An image in an uncompressed tar, read in place; `str()` gives `shard.tar/member.jpg`."""

    offset: int  # first byte of the image in the tar
    size: int  # bytes of the image
    version: int = 0  # changes with the content behind a URL

    @property
    def byte_range(self) -> tuple[str, int, int, int]:
        """Place of the image in the tar."""
        return self.file, self.offset, self.size, self.version

    def read(self) -> bytes:
        """Return the bytes of the image; raise OSError if the tar is missing, unreadable, or ends too early."""
        return read_range(*self.byte_range)


@dataclass(frozen=True)
class RemoteImage(StoredImage):
    """An image file behind a URL."""

    url: str
    size: int = 0  # bytes, 0 if unknown
    version: int = 0  # changes with the content

    def __str__(self) -> str:
        return self.url

    @property
    def is_remote(self) -> bool:
        """Return True."""
        return True

    def read(self) -> bytes:
        """Return the bytes of the image; raise OSError if they cannot be read."""
        return read_whole(self.url, self.size, self.version)


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
