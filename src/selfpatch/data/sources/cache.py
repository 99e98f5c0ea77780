"""Compact table of image files, cached on disk until one of the sources changes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selfpatch.core.atomic_io import replacing

CACHE_FORMAT = 3
SETTLED_NS = 2_000_000_000
"""Age in ns below which a source is not cached: a coarse clock could give the next change the same time."""


class ImageEntry(NamedTuple):
    """An image file, or an image in a tar shard, whose path is then the shard's path, a slash and the member's name."""

    path: bytes
    shard: int = 0  # length of the shard's path; 0 for a file of its own
    offset: int = 0  # first byte of the image in the shard
    size: int = 0  # bytes of the image in the shard


class SourceStamp(NamedTuple):
    """State of a folder, a shard or a list just before it was searched for images."""

    path: str
    time: int  # of modification, in ns
    size: int  # in bytes; -1 for a folder

    @staticmethod
    def of(path: str, status: os.stat_result) -> SourceStamp:
        """Return the stamp of a path from its `os.stat`."""
        size = -1 if stat.S_ISDIR(status.st_mode) else status.st_size
        return SourceStamp(path, status.st_mtime_ns, size)


@dataclass(frozen=True)
class Listing:
    """Images in a fixed order, as three arrays.

    A list of paths would be copied page by page into each forked worker that reads it.

    Attributes:
        characters: [total length] uint8, `ImageEntry.path` of all images, one after the other.
        offsets: [images + 1] int64, first character of each path, and the total length.
        extents: [images, 3] int64, the other fields of `ImageEntry`; [0, 3] if no image lies in a shard.
    """

    characters: np.ndarray
    offsets: np.ndarray
    extents: np.ndarray

    @staticmethod
    def of_files(paths: Sequence[bytes]) -> Listing:
        """List images that are files of their own."""
        offsets = np.zeros(len(paths) + 1, np.int64)
        np.cumsum([len(path) for path in paths], out=offsets[1:])
        return Listing(np.frombuffer(b"".join(paths), np.uint8), offsets, np.zeros((0, 3), np.int64))

    @staticmethod
    def of_entries(entries: Sequence[ImageEntry]) -> Listing:
        """List images of either kind."""
        listing = Listing.of_files([entry.path for entry in entries])
        if not any(entry.shard for entry in entries):
            return listing
        return replace(listing, extents=np.array([entry[1:] for entry in entries], np.int64))

    def path(self, i: int) -> bytes:
        """Return the path of image `i`."""
        return self.characters[self.offsets[i] : self.offsets[i + 1]].tobytes()

    def entry(self, i: int) -> ImageEntry:
        """Return image `i`."""
        return ImageEntry(self.path(i), *(self.extents[i].tolist() if len(self.extents) else ()))

    def __len__(self) -> int:
        return len(self.offsets) - 1


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
            for path, time_and_size in json.loads(cache["stamps"].tobytes()).items():
                if list(SourceStamp.of(path, os.stat(os.path.join(root, path)))[1:]) != time_and_size:
                    return None
            return Listing(cache["characters"], cache["offsets"], cache["extents"])
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile):
        return None  # no cache, a damaged one, or a source is gone


def _save(file: Path, listing: Listing, stamps: Sequence[SourceStamp]) -> None:
    by_path = json.dumps({stamp.path: stamp[1:] for stamp in stamps})
    # A read-only home is no reason to stop: the next run searches again.
    with contextlib.suppress(OSError), replacing(file) as stream:
        np.savez(
            stream,
            format=np.array(CACHE_FORMAT),
            stamps=np.frombuffer(by_path.encode(), np.uint8),
            characters=listing.characters,
            offsets=listing.offsets,
            extents=listing.extents,
        )
