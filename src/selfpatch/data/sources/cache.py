"""Cache of listings on disk, memory-mapped, until one of their sources changes."""

import contextlib
import hashlib
import json
import os
import stat
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from selfpatch.core.atomic_io import replacing
from selfpatch.core.cache_folder import default_cache_dir
from selfpatch.core.dry_run import in_dry_run
from selfpatch.data.sources.listing import Listing

CACHE_FORMAT = 5
SETTLED_NS = 2_000_000_000
"""Age in ns below which a source is not cached: a coarse clock could give the next change the same time."""
ARRAYS = ("characters", "offsets", "extents")
LOCAL_HEADER = 30
"""Bytes of the header of a member of a zip archive, which an .npz file is, before its name."""


class SourceStamp(NamedTuple):
    """State of a folder, a container or a list just before it was searched for images."""

    path: str
    time: int  # of modification, in ns; for a remote file, a hash of what its server tells of its state
    size: int  # in bytes; -1 for a folder

    @staticmethod
    def of(path: str, status: os.stat_result) -> "SourceStamp":
        """Return the stamp of a path from its `os.stat`."""
        return SourceStamp(path, status.st_mtime_ns, -1 if stat.S_ISDIR(status.st_mode) else status.st_size)


def cached(
    search: Callable[[Path], tuple[Listing, Sequence[SourceStamp]]], source: Path, cache_dir: Path | None
) -> Listing:
    """Return the result of `search`, or an earlier one if no source has changed since.

    `search` returns the images and the stamps of all sources. The real path `source` of the folder or file to search
    names the cache file in `cache_dir`. Nothing is cached without stamps, in a dry run, or if the folder is not
    writable.
    """
    root = source if source.is_dir() else source.parent

    def is_current(stamps: Mapping[str, list[int]]) -> bool:
        now = ((SourceStamp.of(path, os.stat(os.path.join(root, path))), before) for path, before in stamps.items())
        return all(list(stamp[1:]) == before for stamp, before in now)

    file = _file(os.fsencode(source), cache_dir)
    known = _load(file, is_current)
    if known is not None:
        return known
    started = time.time_ns()
    listing, stamps = search(source)
    if stamps and max(stamp.time for stamp in stamps) < started - SETTLED_NS:
        _save(file, listing, stamps)
    return listing


def cached_remote(
    read: Callable[[], Listing], url: str, stamps: Sequence[SourceStamp], cache_dir: Path | None
) -> Listing:
    """Return the result of `read`, or an earlier one that was made when the sources had the same stamps."""
    file, now = _file(url.encode(), cache_dir), {stamp.path: list(stamp[1:]) for stamp in stamps}
    known = _load(file, lambda before: before == now)
    if known is not None:
        return known
    listing = read()
    _save(file, listing, stamps)
    return listing


def _file(source: bytes, cache_dir: Path | None) -> Path:
    return (cache_dir or default_cache_dir()) / f"index-{hashlib.sha256(source).hexdigest()[:24]}.npz"


def _save(file: Path, listing: Listing, stamps: Sequence[SourceStamp]) -> None:
    if in_dry_run():
        return
    by_path = json.dumps({stamp.path: stamp[1:] for stamp in stamps}).encode()
    arrays: dict[str, Any] = {"format": CACHE_FORMAT, "stamps": np.frombuffer(by_path, np.uint8), **vars(listing)}
    # A read-only home is no reason to stop: the next run searches again.
    with contextlib.suppress(OSError), replacing(file) as stream:
        np.savez(stream, **arrays)


def _load(file: Path, is_current: Callable[[Mapping[str, list[int]]], bool]) -> Listing | None:
    try:
        with np.load(file, allow_pickle=False) as cache:
            if int(cache["format"]) != CACHE_FORMAT or not is_current(json.loads(cache["stamps"].tobytes())):
                return None
            confined = bool(cache["confined"])
        characters, offsets, extents = (_mapped(file, name) for name in ARRAYS)
        listing = Listing(characters, offsets, extents, confined)
        return listing if listing.is_sound() else None
    except Exception:  # no cache, a source is gone, or a damaged or foreign file, on which readers fail in many ways
        return None


def _mapped(file: Path, name: str) -> np.ndarray:
    """Return an array of an uncompressed .npz file, whose pages are read when they are used."""
    with zipfile.ZipFile(file) as archive:
        member = archive.getinfo(f"{name}.npy")
    with open(file, "rb") as stream:
        stream.seek(member.header_offset)
        header = stream.read(LOCAL_HEADER)
        stream.seek(sum(int.from_bytes(header[i : i + 2], "little") for i in (26, 28)), os.SEEK_CUR)
        start = stream.tell()
        np.lib.format.read_magic(stream)
        shape, _, kind = np.lib.format.read_array_header_1_0(stream)
        if member.compress_type != zipfile.ZIP_STORED or kind.hasobject or start + member.file_size < stream.tell():
            raise ValueError("the array cannot be mapped")
        if not np.prod(shape):
            return np.zeros(shape, kind)
        return np.memmap(stream, kind, "r", stream.tell(), shape)
