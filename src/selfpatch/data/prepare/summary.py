"""Files next to prepared shards: an index, checksums, damaged images, near-duplicates, and what was prepared how."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from selfpatch.core.atomic_io import write_atomically
from selfpatch.core.text import visible
from selfpatch.core.version import VERSION
from selfpatch.data.prepare.near_duplicates import near_pairs
from selfpatch.data.prepare.shards import ShardRecord, shard_name
from selfpatch.data.sources.published import publish
from selfpatch.data.sources.scan import search

CHECKSUMS, DAMAGED, NEAR_DUPLICATES, SUMMARY = "SHA256SUMS", "damaged.tsv", "near-duplicates.tsv", "prepared.json"


class Prepared(NamedTuple):
    """Outcome of a preparation."""

    folder: Path
    images: int
    """Images in the shards."""
    resized: int
    """Those that were made smaller."""
    damaged: int
    near_duplicates: int
    """Images that resemble an earlier one."""
    shards: int
    megabytes: float


def write_summary(
    folder: Path, records: Sequence[ShardRecord], request: Mapping[str, Any], max_distance: int
) -> Prepared:
    """Write the files of a complete preparation, `prepared.json` last, and return the numbers in it.

    - `SHA256SUMS`: `sha256sum -c SHA256SUMS` checks the shards.
    - `damaged.tsv`: name in the source and reason of each image that could not be read.
    - `selfpatch-index.npz`: place of each image in the shards, read in place of their headers, also over a network.
    - `near-duplicates.tsv`: image, the most similar earlier image, both by their names in the shards, and the distance
      of their hashes.
    """
    names = [f"{shard_name(number)}/{name}" for number, record in enumerate(records) for name in record.names]
    pairs = near_pairs(np.concatenate([record.hashes for record in records]), max_distance)
    damaged = [entry for record in records for entry in record.damaged]
    sums = (f"{record.sha256}  {shard_name(number)}" for number, record in enumerate(records))
    write_atomically(folder / CHECKSUMS, _lines(sums))
    write_atomically(folder / DAMAGED, _table(["image", "reason"], damaged))
    near = ((names[later], names[earlier], str(distance)) for later, earlier, distance in zip(*pairs, strict=True))
    write_atomically(folder / NEAR_DUPLICATES, _table(["image", "resembles", "distance"], near))
    publish(folder, search(folder)[0], {shard_name(number): record.size for number, record in enumerate(records)})
    megabytes = sum(record.size for record in records) / 1e6
    resized = sum(record.resized for record in records)
    outcome = Prepared(folder, len(names), resized, len(damaged), len(pairs.later), len(records), round(megabytes, 1))
    counts = {name: value for name, value in outcome._asdict().items() if name != "folder"}
    content = {"selfpatch": VERSION, "request": dict(request), **counts}
    write_atomically(folder / SUMMARY, json.dumps(content, indent=1) + "\n")
    return outcome


def read_summary(folder: Path) -> tuple[Mapping[str, Any], Prepared] | None:
    """Return the request of a complete preparation and its outcome, or None if there is none."""
    try:
        content = json.loads((folder / SUMMARY).read_bytes())
        counts = {name: content[name] for name in Prepared._fields if name != "folder"}
        return content["request"], Prepared(folder, **counts)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return _lines("\t".join(map(visible, row)) for row in [header, *rows])


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
