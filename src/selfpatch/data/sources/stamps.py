"""Stamps of image files, by which a resumed run tells whether images have changed since it began."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np

from selfpatch.data.sources.cache import Listing
from selfpatch.data.sources.image_files import ShardMember, opened

MISSING = -1
THREADS = 8
"""Threads that ask for the state of files: over a network, each answer takes a while."""
CHUNK = 4096
"""Images whose state one thread asks for at once."""
BLOCK = 2**20
"""Bytes that are hashed at once."""


def image_stamps(root: str, listing: Listing, *, content: bool = False) -> np.ndarray:
    """Return size and modification time of each image.

    Args:
        root: folder that the paths in the listing are relative to.
        listing: images.
        content: read every file, and return a hash of its bytes in place of the time.

    Returns:
        [n, 2] int64: size in bytes, and the time in ns or the hash; both are MISSING if a file is. The time of an image
        in a shard is that of the shard.
    """
    stamps = np.empty((len(listing), 2), np.int64)
    stamp_of = _content_stamps if content else _time_stamps

    def fill(first: int) -> None:
        chunk = range(first, min(first + CHUNK, len(listing)))
        stamps[first : first + CHUNK] = [*stamp_of(os.fsencode(root), listing, chunk)]

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(fill, range(0, len(listing), CHUNK)):
            pass
    return stamps


def _time_stamps(root: bytes, listing: Listing, chunk: range) -> Iterator[tuple[int, int]]:
    @cache
    def of_shard(shard: bytes) -> int:
        return os.stat(os.path.join(root, shard)).st_mtime_ns

    for i in chunk:
        path = listing.path(i)
        try:
            if len(listing.extents) and (length := int(listing.extents[i, 0])):
                yield int(listing.extents[i, 2]), of_shard(path[:length])
            else:
                status = os.stat(os.path.join(root, path))
                yield status.st_size, status.st_mtime_ns
        except OSError:
            yield MISSING, MISSING


def _content_stamps(root: bytes, listing: Listing, chunk: range) -> Iterator[tuple[int, int]]:
    for i in chunk:
        path, length, offset, size = listing.entry(i)
        name = os.fsdecode(os.path.join(root, path))
        shard = os.fsdecode(os.path.join(root, path[:length]))
        try:
            with opened(ShardMember(shard, name, offset, size) if length else Path(name)) as stream:
                digest = hashlib.blake2b(digest_size=8)
                while block := stream.read(BLOCK):
                    digest.update(block)
                yield stream.tell(), int.from_bytes(digest.digest(), "little", signed=True)
        except OSError:
            yield MISSING, MISSING
