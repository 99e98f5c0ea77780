"""Cache on disk of what was read over a network or unpacked, limited in size; shared by all processes.

    folder/07/<hash of the key>     content and its CRC-32, 4 bytes

Each of the 64 folders has an equal share of the limit. A process that has added some of that share removes those files
of the folder that were not used for longest. The limit may be exceeded for moments by what the processes add meanwhile.
"""

import contextlib
import hashlib
import os
import zlib
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from selfpatch.core.cache_folder import default_cache_dir
from selfpatch.core.dry_run import in_dry_run

SIZE_VARIABLE = "SELFPATCH_CACHE_GB"
"""Environment variable with the size of the cache in GB; 0 caches nothing."""
DEFAULT_GB = 20.0
FOLDERS = 64
CHECKED_AFTER = 64
"""Fraction of a folder's share, as its inverse, that a process adds before it looks at the folder's size."""
KEPT = 0.75
"""Fraction of its share that a full folder is reduced to."""

_added: defaultdict[Path, int] = defaultdict(int)
"""Bytes that this process has added to each folder since it looked at its size."""


def kept(key: str, fetch: Callable[[], bytes]) -> bytes:
    """Return the content of a key from the cache, or fetch and add it."""
    content = lookup(key)
    if content is None:
        content = fetch()
        keep(key, content)
    return content


def max_bytes() -> float:
    """Return the size of the cache in bytes: `SELFPATCH_CACHE_GB`, or 20 GB.

    Raises:
        ValueError: the variable holds no number of at least 0.
    """
    value = os.environ.get(SIZE_VARIABLE) or str(DEFAULT_GB)
    with contextlib.suppress(ValueError):
        if 0 <= (size := float(value)) < float("inf"):
            return size * 1e9
    raise ValueError(f"{SIZE_VARIABLE} is {value!r}; set it to a size in GB, e.g. {DEFAULT_GB:g}, or to 0 for none")


def lookup(key: str) -> bytes | None:
    """Return what was kept under a key, or None; a damaged file counts as none."""
    if not max_bytes():
        return None
    file = _file(key)
    try:
        stored = file.read_bytes()
        os.utime(file)
    except OSError:
        return None
    content, checksum = stored[:-4], stored[-4:]
    return content if zlib.crc32(content).to_bytes(4, "little") == checksum else None


def keep(key: str, content: bytes) -> None:
    """Add content to the cache, unless it cannot be written or is off."""
    file, share = _file(key), max_bytes() / FOLDERS
    if not share or in_dry_run():
        return
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    # A cache that cannot be written is no reason to stop.
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(content + zlib.crc32(content).to_bytes(4, "little"))
            os.replace(temporary, file)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        _added[file.parent] += len(content)
        if _added[file.parent] > share / CHECKED_AFTER:
            _added[file.parent] = 0
            _shrink(file.parent, share)


def _file(key: str) -> Path:
    name = hashlib.sha256(os.fsencode(key)).hexdigest()
    return default_cache_dir() / "images" / f"{int(name[:8], 16) % FOLDERS:02d}" / name


def _shrink(folder: Path, share: float) -> None:
    with os.scandir(folder) as entries:
        files = sorted(
            (status.st_mtime_ns, status.st_size, entry.path) for entry in entries if (status := entry.stat())
        )
    total = sum(size for _, size, _ in files)
    if total <= share:
        return
    for _, size, path in files:
        if total <= KEPT * share:
            return
        with contextlib.suppress(OSError):
            os.unlink(path)
        total -= size
