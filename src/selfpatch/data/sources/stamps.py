"""Stamps of image files, by which a resumed run tells whether images have changed since it began."""

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from selfpatch.data.sources.image_files import ImageFile, opened
from selfpatch.data.sources.listing import Listing
from selfpatch.data.sources.remote import RemoteError

MISSING = -1
THREADS = 8
"""Threads that ask for the state of files: over a network, each answer takes a while."""
CHUNK = 4096
"""Images whose state one thread asks for at once."""
BLOCK = 2**20
"""Bytes that are hashed at once."""


def time_stamps(root: str, listing: Listing) -> np.ndarray:
    """Return size in bytes and modification time in ns of each image, [n, 2] int64; both are MISSING if a file is.

    The paths in the listing are relative to `root`. The time of an image in a shard is that of the shard.
    """
    return _stamps(len(listing), lambda chunk: _time_stamps(os.fsencode(root), listing, chunk))


def remote_stamps(listing: Listing, version: Callable[[bytes], int]) -> np.ndarray:
    """Return size and version of each image, as `time_stamps` does; those of a container are the container's.

    Image files that are no part of a container have no version: asking a server for each would take hours.
    """

    def of_chunk(chunk: range) -> Iterator[tuple[int, int]]:
        for i in chunk:
            path, length, _, size = listing.entry(i)
            yield size, version(path[:length]) if length else 0

    return _stamps(len(listing), of_chunk)


def content_stamps(file_of: Callable[[int], ImageFile], count: int) -> np.ndarray:
    """Return size in bytes and a hash of the content of each image, as `time_stamps` does; every file is read."""
    return _stamps(count, lambda chunk: map(_content_stamp, map(file_of, chunk)))


def _stamps(count: int, of_chunk: Callable[[range], Iterator[tuple[int, int]]]) -> np.ndarray:
    stamps = np.empty((count, 2), np.int64)

    def fill(first: int) -> None:
        chunk = range(first, min(first + CHUNK, count))
        stamps[first : first + CHUNK] = [*of_chunk(chunk)]

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(fill, range(0, count, CHUNK)):
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


def _content_stamp(file: ImageFile) -> tuple[int, int]:
    digest = hashlib.blake2b(digest_size=8)
    try:
        with opened(file) as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
            return stream.tell(), int.from_bytes(digest.digest(), "little", signed=True)
    except RemoteError:
        raise
    except OSError:
        return MISSING, MISSING
