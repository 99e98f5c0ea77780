"""Index next to prepared shards: one small file, by which millions of images are known without their headers."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from selfpatch.core.atomic_io import replacing
from selfpatch.core.folders import visible_entries
from selfpatch.data.sources.cache import SourceStamp
from selfpatch.data.sources.listing import Listing
from selfpatch.data.sources.shards import is_shard

NAME = "selfpatch-index.npz"
FORMAT = 1
MAX_BYTES = 2**32
"""Size of the largest array that is read, for a compressed file may claim any size."""


def publish(folder: Path, listing: Listing, shards: dict[str, int]) -> None:
    """Write the index of a folder of shards, whose sizes in bytes are given by name."""
    arrays: dict[str, Any] = {
        "format": FORMAT,
        "shards": np.frombuffer(json.dumps(shards).encode(), np.uint8),
        "characters": listing.characters,
        "lengths": np.diff(listing.offsets).astype(np.uint32),
        "extents": listing.extents,
    }
    with replacing(folder / NAME) as file:
        np.savez_compressed(file, **arrays)


def read_local(folder: Path) -> tuple[Listing, list[SourceStamp]] | None:
    """Return the index of a folder with the stamps of its files, or None if it has none or its shards are others."""
    try:
        stamps = [SourceStamp.of("", os.stat(folder)), SourceStamp.of(NAME, os.stat(folder / NAME))]
        listing, shards = parse((folder / NAME).read_bytes(), str(folder / NAME))
        stamps += [SourceStamp.of(name, os.stat(folder / name)) for name in shards]
    except (OSError, ValueError):
        return None
    present = {entry.name for entry in visible_entries(folder) if is_shard(entry.name)}
    return (listing, stamps) if {s.path: s.size for s in stamps[2:]} == shards and present == set(shards) else None


def parse(content: bytes, name: str) -> tuple[Listing, dict[str, int]]:
    """Return the listing in an index and the sizes of its shards by name.

    Raises:
        ValueError: it is damaged, of another version, or names other files than those in its folder.
    """
    try:
        if not content.startswith(b"PK"):  # NumPy would take it for a pickle, and advise to trust it
            raise ValueError("it is no index")
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            if any(info.file_size > MAX_BYTES for info in stored.zip.infolist()):
                raise ValueError("it is too large")
            if int(stored["format"]) != FORMAT:
                raise ValueError(f"its format is {int(stored['format'])}, not {FORMAT}")
            shards = {str(shard): int(size) for shard, size in json.loads(stored["shards"].tobytes()).items()}
            offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(stored["lengths"], dtype=np.int64)])
            listing = Listing(stored["characters"], offsets, stored["extents"], confined=True)
        if not listing.is_sound():
            raise ValueError("its arrays do not fit together")
        lengths = listing.extents[:, 0]  # of the names of shards
        if not len(lengths) or not ((lengths > 0) & (lengths < np.diff(listing.offsets))).all():
            raise ValueError("an image lies in no shard")
        if any(shard in ("", ".", "..") or "/" in shard or "\\" in shard or "\0" in shard for shard in shards):
            raise ValueError("a shard lies outside of its folder")
    except Exception as error:  # a damaged or foreign file, on which readers fail in many ways
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(f"cannot read {name}: {reason}; make it again with `selfpatch prepare`") from None
    return listing, shards
