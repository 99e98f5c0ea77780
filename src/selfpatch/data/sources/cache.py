"""What an index is made of: many paths as a few arrays, and a file on disk that keeps them until something changes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selfpatch.core.atomic_io import replacing

CACHE_FORMAT = 2
SETTLED_NS = 2_000_000_000
"""What changed this recently is not cached: a coarse clock could hide the next change behind the same time."""


@dataclass(frozen=True)
class PathTable:
    """Many paths as two arrays: a list of str would be copied page by page into each forked worker that reads it."""

    characters: np.ndarray  # [total length] uint8, all paths one after the other
    offsets: np.ndarray  # [paths + 1] int64

    @staticmethod
    def pack(paths: Sequence[bytes]) -> PathTable:
        offsets = np.zeros(len(paths) + 1, np.int64)
        np.cumsum([len(path) for path in paths], out=offsets[1:])
        return PathTable(np.frombuffer(b"".join(paths), np.uint8), offsets)

    def get(self, i: int) -> bytes:
        return self.characters[self.offsets[i] : self.offsets[i + 1]].tobytes()

    def __len__(self) -> int:
        return len(self.offsets) - 1


class ImageEntry(NamedTuple):
    """An image that was found; in a shard, its path is that of the shard, a slash and its name there."""

    path: bytes
    shard: int = 0  # length of the shard's path; 0: it is a file of its own
    offset: int = 0  # where its bytes lie in the shard, and how many they are
    size: int = 0


class SourceStamp(NamedTuple):
    """A folder, a shard or a list that images were looked for in, as it was just before."""

    path: bytes
    time: int  # of modification, in ns
    size: int  # -1 of a folder

    @staticmethod
    def of(path: str, status: os.stat_result) -> SourceStamp:
        size = -1 if stat.S_ISDIR(status.st_mode) else status.st_size
        return SourceStamp(os.fsencode(path), status.st_mtime_ns, size)


@dataclass(frozen=True)
class Listing:
    """Images in a fixed order.

    Attributes:
        paths: as `ImageEntry.path`.
        extents: [images, 3] int64, the rest of `ImageEntry`; [0, 3] where no image lies in a shard.
    """

    paths: PathTable
    extents: np.ndarray

    @staticmethod
    def of_files(paths: Sequence[bytes]) -> Listing:
        return Listing(PathTable.pack(paths), np.zeros((0, 3), np.int64))

    @staticmethod
    def pack(found: Sequence[ImageEntry]) -> Listing:
        paths = [image.path for image in found]
        if not any(image.shard for image in found):
            return Listing.of_files(paths)
        return Listing(PathTable.pack(paths), np.array([image[1:] for image in found], np.int64))

    def get(self, i: int) -> ImageEntry:
        return ImageEntry(self.paths.get(i), *(self.extents[i].tolist() if len(self.extents) else ()))

    def __len__(self) -> int:
        return len(self.paths)


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/selfpatch`, or `~/.cache/selfpatch`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "selfpatch"


def cached(
    source: str, root: str, cache_dir: Path | None, find: Callable[[], tuple[Listing, Sequence[SourceStamp]]]
) -> Listing:
    """What `find` finds, or what it found before where nothing of what it watched has changed since.

    Args:
        source: real path of the folder or file that it looks through.
        root: what the watched paths are relative to.
        cache_dir: folder for what was found; None: `default_cache_dir()`. Where it cannot be written there is no cache.
        find: gives the images and what to watch; where that is nothing, there is nothing to save either.
    """
    name = f"index-{hashlib.sha256(os.fsencode(source)).hexdigest()[:24]}.npz"
    file = (cache_dir or default_cache_dir()) / name
    known = _load(root, file)
    if known is not None:
        return known
    began = time.time_ns()
    listing, watched = find()
    if watched and max(each.time for each in watched) < began - SETTLED_NS:
        _save(file, listing, watched)
    return listing


def _load(root: str, file: Path) -> Listing | None:
    try:
        with np.load(file, allow_pickle=False) as cache:
            if int(cache["format"]) != CACHE_FORMAT:
                return None
            watched = PathTable(cache["watched"], cache["watched_offsets"])
            if not _unchanged(root, watched, cache["times"].tolist(), cache["sizes"].tolist()):
                return None
            return Listing(PathTable(cache["images"], cache["image_offsets"]), cache["extents"])
    except (
        OSError,
        EOFError,
        KeyError,
        ValueError,
        zipfile.BadZipFile,
    ):  # no cache, a damaged one, or something that has gone
        return None


def _unchanged(root: str, watched: PathTable, times: Iterable[int], sizes: Iterable[int]) -> bool:
    paths = (os.fsdecode(watched.get(i)) for i in range(len(watched)))
    return all(
        SourceStamp.of(path, os.stat(os.path.join(root, path)))[1:] == (time, size)
        for path, time, size in zip(paths, times, sizes, strict=True)
    )


def _save(file: Path, listing: Listing, watched: Sequence[SourceStamp]) -> None:
    folders = PathTable.pack([each.path for each in watched])
    # A read-only home is no reason to stop: the next run looks again.
    with contextlib.suppress(OSError), replacing(file) as stream:
        np.savez(
            stream,
            format=np.array(CACHE_FORMAT),
            images=listing.paths.characters,
            image_offsets=listing.paths.offsets,
            extents=listing.extents,
            watched=folders.characters,
            watched_offsets=folders.offsets,
            times=np.array([each.time for each in watched], np.int64),
            sizes=np.array([each.size for each in watched], np.int64),
        )
