"""An image as it lies on disk: a file of its own, or a part of a tar shard."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


@dataclass(frozen=True)
class ShardMember:
    """An image in an uncompressed tar, which is read in place; `str()` is `shard.tar/member.jpg`.

    Attributes:
        shard: path of the tar.
        name: path of the image in it.
        offset: where its bytes begin in the tar.
        size: how many they are.
    """

    shard: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"

    def read(self) -> bytes:
        """Raises OSError where the tar has gone, cannot be read, or ends too early."""
        with open(self.shard, "rb") as shard:  # anew each time: no handle to share among threads, forks and pickles
            shard.seek(self.offset)
            content = shard.read(self.size)
        if len(content) < self.size:
            raise OSError(f"the shard ends after {len(content)} of its {self.size} bytes")
        return content


ImageFile = str | Path | ShardMember
"""What readers of images take."""


class _Content(io.BytesIO):
    """Bytes of a member; decoders name in their errors what they were given."""

    def __init__(self, member: ShardMember) -> None:
        super().__init__(member.read())
        self._name = str(member)

    def __repr__(self) -> str:
        return repr(self._name)


def opened(file: ImageFile) -> BinaryIO:
    """The bytes of an image, to be read."""
    return _Content(file) if isinstance(file, ShardMember) else open(file, "rb")


def openable(file: ImageFile) -> str | Path | BinaryIO:
    """The same for Pillow and tifffile, which do more with a path (such as mapping it) than with an open file."""
    return _Content(file) if isinstance(file, ShardMember) else file
