"""Tar shards, and folders with the same images."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def write_shard(
    path: Path, members: Mapping[str, bytes] | Iterable[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT
) -> Path:
    """Write an uncompressed tar of these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:", format=format) as tar:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def photo(seed: int, extension: str = "jpg", size: tuple[int, int] = (48, 40)) -> bytes:
    """Return an encoded smooth random image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(
        stream, Image.registered_extensions()[f".{extension}"]
    )
    return stream.getvalue()


def write_twins(root: Path, shards: Mapping[str, Mapping[str, bytes]]) -> tuple[Path, Path]:
    """Write shards to `root/shards`, and a folder of the same name for each to `root/folders`."""
    for shard, members in shards.items():
        write_shard(root / "shards" / shard, members)
        for name, content in members.items():
            file = root / "folders" / shard / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    return root / "shards", root / "folders"


def settle(*roots: Path) -> None:
    """Make files and folders look unchanged for an hour: only such sources are cached."""
    for root in roots:
        for path in [*root.rglob("*"), root]:
            status = path.stat()
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - 3600 * 10**9))
