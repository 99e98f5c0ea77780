"""Bytes of local files and of files behind a URL."""

import io
from collections.abc import Sequence
from typing import BinaryIO, cast

from selfpatch.core.disk_cache import keep, kept, lookup
from selfpatch.data.sources import remote
from selfpatch.data.sources.regular import open_regular

BLOCK = 2**16
"""Bytes that are read ahead of a position in a file behind a URL."""


def read_range(location: str, offset: int, size: int, version: int = 0) -> bytes:
    """Return bytes of a file, a remote one through the cache on disk.

    Args:
        location: path or URL.
        offset: first byte.
        size: number of bytes.
        version: number that changes with the content behind a URL.

    Raises:
        OSError: the file is missing, unreadable, or ends too early.
    """
    if remote.is_url(location):
        return kept(_key(location, offset, size, version), lambda: remote.read(location, offset, size))
    with open_regular(location) as file:  # opened each time: no handle is shared by threads, forks and pickles
        file.seek(offset)
        content = file.read(size)
    if len(content) < size:
        raise OSError(f"the file ends after {len(content)} of its {size} bytes")
    return content


def read_ranges(ranges: Sequence[tuple[str, int, int, int]]) -> list[bytes | None]:
    """Return bytes of ranges behind URLs, given as the arguments of `read_range`, asked for at once.

    None stands for a range that did not arrive: `read_range` tries it again, or tells what is wrong.
    """
    found = [lookup(_key(*piece)) for piece in ranges]
    missing = [i for i, content in enumerate(found) if content is None]
    if missing:
        for i, content in zip(missing, remote.read_several([ranges[i][:3] for i in missing]), strict=True):
            found[i] = content
            if content is not None:
                keep(_key(*ranges[i]), content)
    return found


def _key(location: str, offset: int, size: int, version: int) -> str:
    return f"{location}\n{version}\n{offset}\n{size}"


def read_whole(url: str, size: int = 0, version: int = 0) -> bytes:
    """Return a whole file behind a URL, through the cache on disk; its size is checked unless it is 0."""
    return kept(f"{url}\n{version}\n{size}", lambda: remote.read(url, 0, size) if size else remote.read_all(url))


def open_location(location: str) -> BinaryIO:
    """Open a file or a URL for reading bytes at any position."""
    if remote.is_url(location):
        return cast(BinaryIO, io.BufferedReader(remote.RemoteFile(location), BLOCK))
    return open_regular(location)
