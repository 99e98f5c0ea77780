"""Compact table of image files, cached on disk until one of the sources changes."""

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
"""Age in ns below which a source is not cached: a coarse clock could give the next change the same time."""


@dataclass(frozen=True)
class PathTable:
    """Many paths as two arrays: a list of str would be copied page by page into each forked worker that reads it."""

    characters: np.ndarray  # [total length] uint8, all paths one after the other
    offsets: np.ndarray  # [paths + 1] int64

    @staticmethod
    def pack(paths: Sequence[bytes]) -> PathTable:
        """Store paths, in file-system encoding, in one table."""
        offsets = np.zeros(len(paths) + 1, np.int64)
        np.cumsum([len(path) for path in paths], out=offsets[1:])
        return PathTable(np.frombuffer(b"".join(paths), np.uint8), offsets)

    def get(self, i: int) -> bytes:
        """Return path `i`."""
        return self.characters[self.offsets[i] : self.offsets[i + 1]].tobytes()

    def __len__(self) -> int:
        return len(self.offsets) - 1


class ImageEntry(NamedTuple):
    """An image file, or an image in a tar shard, whose path is then the shard's path, a slash and the member's name."""

    path: bytes
    shard: int = 0  # length of the shard's path; 0 for a file of its own
    offset: int = 0  # first byte of the image in the shard
    size: int = 0  # bytes of the image in the shard


class SourceStamp(NamedTuple):
    """State of a folder, a shard or a list just before it was searched for images."""

    path: bytes
    time: int  # of modification, in ns
    size: int  # in bytes; -1 for a folder

    @staticmethod
    def of(path: str, status: os.stat_result) -> SourceStamp:
        """Return the stamp of a path from its `os.stat`."""
        size = -1 if stat.S_ISDIR(status.st_mode) else status.st_size
        return SourceStamp(os.fsencode(path), status.st_mtime_ns, size)


@dataclass(frozen=True)
class Listing:
    """Images in a fixed order.

    Attributes:
        paths: `ImageEntry.path` of each image.
        extents: [images, 3] int64, the other fields of `ImageEntry`; [0, 3] if no image lies in a shard.
    """

    paths: PathTable
    extents: np.ndarray

    @staticmethod
    def of_files(paths: Sequence[bytes]) -> Listing:
        """List images that are files of their own."""
        return Listing(PathTable.pack(paths), np.zeros((0, 3), np.int64))

    @staticmethod
    def pack(entries: Sequence[ImageEntry]) -> Listing:
        """List images of either kind."""
        paths = [entry.path for entry in entries]
        if not any(entry.shard for entry in entries):
            return Listing.of_files(paths)
        return Listing(PathTable.pack(paths), np.array([entry[1:] for entry in entries], np.int64))

    def get(self, i: int) -> ImageEntry:
        """Return image `i`."""
        return ImageEntry(self.paths.get(i), *(self.extents[i].tolist() if len(self.extents) else ()))

    def __len__(self) -> int:
        return len(self.paths)


def default_cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/selfpatch`, or `~/.cache/selfpatch`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "selfpatch"


def cached(
    source: str, root: str, cache_dir: Path | None, search: Callable[[], tuple[Listing, Sequence[SourceStamp]]]
) -> Listing:
    """Return the result of `search`, or that of an earlier search if no source has changed since.

    Args:
        source: real path of the folder or file to search; names the cache file.
        root: folder that the stamped paths are relative to.
        cache_dir: folder of the cache (default: `default_cache_dir()`). If it is not writable, nothing is cached.
        search: returns the images and the stamps of all sources; without stamps, nothing is cached.
    """
    name = f"index-{hashlib.sha256(os.fsencode(source)).hexdigest()[:24]}.npz"
    file = (cache_dir or default_cache_dir()) / name
    known = _load(root, file)
    if known is not None:
        return known
    started = time.time_ns()
    listing, stamps = search()
    if stamps and max(stamp.time for stamp in stamps) < started - SETTLED_NS:
        _save(file, listing, stamps)
    return listing


def _load(root: str, file: Path) -> Listing | None:
    try:
        with np.load(file, allow_pickle=False) as cache:
            if int(cache["format"]) != CACHE_FORMAT:
                return None
            sources = PathTable(cache["watched"], cache["watched_offsets"])
            if not _unchanged(root, sources, cache["times"].tolist(), cache["sizes"].tolist()):
                return None
            return Listing(PathTable(cache["images"], cache["image_offsets"]), cache["extents"])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None  # no cache, a damaged one, or a source is gone


def _unchanged(root: str, sources: PathTable, times: Iterable[int], sizes: Iterable[int]) -> bool:
    paths = (os.fsdecode(sources.get(i)) for i in range(len(sources)))
    return all(
        SourceStamp.of(path, os.stat(os.path.join(root, path)))[1:] == (time, size)
        for path, time, size in zip(paths, times, sizes, strict=True)
    )


def _save(file: Path, listing: Listing, stamps: Sequence[SourceStamp]) -> None:
    sources = PathTable.pack([stamp.path for stamp in stamps])
    # A read-only home is no reason to stop: the next run searches again.
    with contextlib.suppress(OSError), replacing(file) as stream:
        np.savez(
            stream,
            format=np.array(CACHE_FORMAT),
            images=listing.paths.characters,
            image_offsets=listing.paths.offsets,
            extents=listing.extents,
            watched=sources.characters,
            watched_offsets=sources.offsets,
            times=np.array([stamp.time for stamp in stamps], np.int64),
            sizes=np.array([stamp.size for stamp in stamps], np.int64),
        )
