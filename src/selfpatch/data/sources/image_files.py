"""Image files to read: a plain file, or a member of a tar shard."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class ShardMember:
    """An image in an uncompressed tar, read in place; `str()` gives `shard.tar/member.jpg`."""

    shard: str  # path of the tar
    name: str  # path of the image in the tar
    offset: int  # first byte of the image in the tar
    size: int  # bytes of the image

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"

    def read(self) -> bytes:
        """Return the bytes of the image; raise OSError if the tar is missing, unreadable, or ends too early."""
        with open(self.shard, "rb") as shard:  # opened each time: no handle is shared by threads, forks and pickles
            shard.seek(self.offset)
            content = shard.read(self.size)
        if len(content) < self.size:
            raise OSError(f"the shard ends after {len(content)} of its {self.size} bytes")
        return content


ImageFile = str | Path | ShardMember
"""Input of every image reader."""


class _Content(io.BytesIO):
    """Bytes of a member, under its name: decoders quote the `repr` of their input in errors."""

    def __init__(self, member: ShardMember) -> None:
        super().__init__(member.read())
        self._name = str(member)

    def __repr__(self) -> str:
        return repr(self._name)


def opened(file: ImageFile) -> BinaryIO:
    """Open an image file for reading bytes."""
    return _Content(file) if isinstance(file, ShardMember) else open(file, "rb")


def openable(file: ImageFile) -> str | Path | BinaryIO:
    """Return what Pillow and tifffile open best: the path itself, which they can map, or an open shard member."""
    return _Content(file) if isinstance(file, ShardMember) else file
