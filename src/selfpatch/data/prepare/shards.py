"""Tar shards of prepared images, each with a record of what it holds, so that a stopped preparation continues."""

import hashlib
import io
import itertools
import json
import posixpath
import re
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from selfpatch.core.atomic_io import replacing
from selfpatch.core.folders import LITTER
from selfpatch.data.prepare.convert import PreparedImage, ending_of
from selfpatch.data.sources.scan import is_image

RECORDS = ".records"
"""Folder of the records, below the one of the shards."""
JPEG_ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif")


class ShardRecord(NamedTuple):
    """Content of one shard, and the damaged images that were met on the way."""

    end: int  # position in the data set behind the last image
    sha256: str
    size: int  # bytes of the shard
    images: np.ndarray  # [n] int64, indices in the source
    names: list[str]  # [n], of the members
    hashes: np.ndarray  # [n, 2] uint64
    damaged: list[tuple[str, str]]  # name and reason
    resized: int  # number of images that were made smaller


class ShardWriter:
    """A shard that is written; on disk, it and its record appear when it is closed."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.name = folder, shard_name(number)
        self.size = 0
        self._stack = ExitStack()
        file = self._stack.enter_context(replacing(folder / self.name))
        self._file = _Hashing(file)
        tar = tarfile.open(fileobj=self._file, mode="w|")  # type: ignore[call-overload]  # noqa: SIM115
        self._tar = self._stack.enter_context(tar)
        self._images: list[int] = []
        self._names: dict[str, None] = {}
        self._hashes: list[np.ndarray] = []
        self._damaged: list[tuple[str, str]] = []
        self._resized = 0

    def __enter__(self) -> "ShardWriter":
        self._stack.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, index: int, name: str, image: PreparedImage) -> None:
        """Add the image of an index and name in the source; the index becomes part of a name that is taken."""
        name = member_name(name, jpeg=image.resized)
        if not is_image(name):  # a row of a Parquet file
            name += ending_of(image.content)
        stem, ending = posixpath.splitext(name)
        numbers = itertools.count(index)
        while name in self._names:
            name = f"{stem}.{next(numbers)}{ending}"
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(image.content), 0o644
        self._tar.addfile(member, io.BytesIO(image.content))
        self._images.append(index)
        self._names[name] = None
        self._hashes.append(image.hash)
        self._resized += image.resized
        self.size += member.size

    def add_damaged(self, name: str, reason: str) -> None:
        """Note an image that cannot be read."""
        self._damaged.append((name, reason))

    def close(self, end: int) -> ShardRecord:
        """Complete the shard, write its record, and return it."""
        self._stack.close()
        hashes = np.array(self._hashes, np.uint64).reshape(-1, 2)
        record = ShardRecord(
            end, self._file.digest.hexdigest(), self._file.size, np.array(self._images, np.int64), [*self._names],
            hashes, self._damaged, self._resized,
        )  # fmt: skip
        with replacing(self.folder / RECORDS / f"{self.name}.npz") as file:
            text = json.dumps([record.end, record.sha256, record.size, record.names, record.damaged, record.resized])
            arrays = {"text": np.frombuffer(text.encode(), np.uint8), "images": record.images, "hashes": hashes}
            np.savez(file, **arrays)  # type: ignore[arg-type]
        return record


def finished_shards(folder: Path) -> Iterator[ShardRecord]:
    """Yield the records of the shards that are complete, in order."""
    for number in itertools.count():
        name = shard_name(number)
        try:
            with np.load(folder / RECORDS / f"{name}.npz", allow_pickle=False) as stored:
                end, sha256, size, names, damaged, resized = json.loads(stored["text"].tobytes())
                images, hashes = stored["images"], stored["hashes"]
            if (folder / name).stat().st_size != size:
                return
        except Exception:  # not there yet, or damaged, on which NumPy raises nearly anything: written anew
            return
        yield ShardRecord(end, sha256, size, images, names, hashes, [(str(n), str(r)) for n, r in damaged], resized)


def shard_name(number: int) -> str:
    """Return the file name of a shard."""
    return f"{number:05d}.tar"


def member_name(name: str, *, jpeg: bool) -> str:
    r"""Return the name in a shard of an image that has a name in its source, ending in .jpg if it became a JPEG file.

    Tar shards of the source disappear from it, for their images belong to the class of the folder that they lie in:
    `a/1.tar/b/2.png` becomes `a/b/2.png.jpg`. So do `..`, drives, and hidden files, which readers pass over.
    """
    parts = [part.lstrip(".") for part in re.split(r"[/\\]", name)]
    kept = [part for part in parts if part and not part.endswith(":") and part.lower() not in LITTER]
    *folders, last = kept or ["image"]
    path = "/".join([*(f for f in folders if not f.lower().endswith((".tar", ".zip", ".parquet"))), last])
    return f"{path}.jpg" if jpeg and not path.lower().endswith(JPEG_ENDINGS) else path


class _Hashing:
    """A stream that hashes what is written to it."""

    def __init__(self, stream: BinaryIO) -> None:
        self.digest, self.size = hashlib.sha256(), 0
        self._stream = stream

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        self.size += len(content)
        return self._stream.write(content)
