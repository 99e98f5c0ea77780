"""Compact table of image files, cached on disk until one of the sources changes."""

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from selfpatch.core.atomic_io import replacing
from selfpatch.core.dry_run import in_dry_run

CACHE_FORMAT = 4
SETTLED_NS = 2_000_000_000
"""Age in ns below which a source is not cached: a coarse clock could give the next change the same time."""


class ImageEntry(NamedTuple):
    """An image file, or an image in a tar shard, whose path is then the shard's path, a slash and the member's name."""

    path: bytes
    shard: int = 0  # length of the shard's path; 0 for a plain file
    offset: int = 0  # first byte of the image in the shard
    size: int = 0  # bytes of the image in the shard


class SourceStamp(NamedTuple):
    """State of a folder, a shard or a list just before it was searched for images."""

    path: str
    time: int  # of modification, in ns
    size: int  # in bytes; -1 for a folder

    @staticmethod
    def of(path: str, status: os.stat_result) -> "SourceStamp":
        """Return the stamp of a path from its `os.stat`."""
        return SourceStamp(path, status.st_mtime_ns, -1 if stat.S_ISDIR(status.st_mode) else status.st_size)


@dataclass(frozen=True)
class Listing:
    """Images in a fixed order, as three arrays.

    A list of paths would be copied page by page into each forked worker that reads it.
    """

    characters: np.ndarray
    """[total length] uint8, `ImageEntry.path` of all images, one after the other."""
    offsets: np.ndarray
    """[images + 1] int64, first character of each path, and the total length."""
    extents: np.ndarray
    """[images, 3] int64, the other fields of `ImageEntry`; [0, 3] if no image lies in a shard."""

    @staticmethod
    def of_files(paths: Sequence[bytes], extents: Sequence[tuple[int, int, int]] = ()) -> "Listing":
        """List plain image files, unless `extents` locates them in shards."""
        offsets = np.cumsum([0, *map(len, paths)], dtype=np.int64)
        return Listing(np.frombuffer(b"".join(paths), np.uint8), offsets, np.array(extents, np.int64).reshape(-1, 3))

    @staticmethod
    def of_entries(entries: Sequence[ImageEntry]) -> "Listing":
        """List images of either kind."""
        in_shards = any(entry.shard for entry in entries)
        return Listing.of_files([entry.path for entry in entries], [e[1:] for e in entries] if in_shards else ())

    def is_sound(self) -> bool:
        """Return whether the arrays have the types and shapes above, and lead nowhere outside one another."""
        kinds = [(a.dtype, a.ndim) for a in (self.characters, self.offsets, self.extents)]
        return (
            kinds == [(np.dtype(np.uint8), 1), (np.dtype(np.int64), 1), (np.dtype(np.int64), 2)]
            and len(self.offsets) > 1
            and self.offsets[0] == 0
            and self.offsets[-1] == len(self.characters)
            and bool((np.diff(self.offsets) > 0).all())
            and self.extents.shape in ((0, 3), (len(self), 3))
            and bool((self.extents >= 0).all())
        )

    def path(self, i: int) -> bytes:
        """Return the path of image `i`."""
        return self.characters[self.offsets[i] : self.offsets[i + 1]].tobytes()

    def entry(self, i: int) -> ImageEntry:
        """Return image `i`."""
        return ImageEntry(self.path(i), *(self.extents[i].tolist() if len(self.extents) else ()))

    def __len__(self) -> int:
        return len(self.offsets) - 1


def default_cache_dir() -> Path:
    """Return `$XDG_CACHE_HOME/selfpatch`, or `~/.cache/selfpatch`; without a home, a folder that nobody can make."""
    try:
        home = Path("~").expanduser()
    except RuntimeError:
        home = Path(os.devnull)
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "selfpatch"


def cached(
    search: Callable[[Path], tuple[Listing, Sequence[SourceStamp]]], source: Path, cache_dir: Path | None
) -> Listing:
    """Return the result of `search`, or an earlier one if no source has changed since.

    `search` returns the images and the stamps of all sources. The real path `source` of the folder or file to search
    names the cache file in `cache_dir`. Nothing is cached without stamps, in a dry run, or if the folder is not
    writable.
    """
    name = f"index-{hashlib.sha256(os.fsencode(source)).hexdigest()[:24]}.npz"
    file = (cache_dir or default_cache_dir()) / name
    known = _load(file, root=source if source.is_dir() else source.parent)
    if known is not None:
        return known
    started = time.time_ns()
    listing, stamps = search(source)
    if not in_dry_run() and stamps and max(stamp.time for stamp in stamps) < started - SETTLED_NS:
        by_path = json.dumps({stamp.path: stamp[1:] for stamp in stamps}).encode()
        arrays: dict[str, Any] = {"format": CACHE_FORMAT, "stamps": np.frombuffer(by_path, np.uint8), **vars(listing)}
        # A read-only home is no reason to stop: the next run searches again.
        with contextlib.suppress(OSError), replacing(file) as stream:
            np.savez(stream, **arrays)
    return listing


def _load(file: Path, root: Path) -> Listing | None:
    try:
        with np.load(file, allow_pickle=False) as cache:
            if int(cache["format"]) != CACHE_FORMAT:
                return None
            for path, time_and_size in json.loads(cache["stamps"].tobytes()).items():
                if list(SourceStamp.of(path, os.stat(os.path.join(root, path)))[1:]) != time_and_size:
                    return None
            listing = Listing(cache["characters"], cache["offsets"], cache["extents"])
            return listing if listing.is_sound() else None
    except Exception:  # no cache, a source is gone, or a damaged or foreign file, on which readers fail in many ways
        return None
