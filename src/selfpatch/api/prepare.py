"""Make the images of a source smaller once, and write them to tar shards."""

import contextlib
import itertools
import json
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from selfpatch.config.schema import override, recorded
from selfpatch.core.atomic_io import make_folder, write_atomically
from selfpatch.core.lock import FILE as LOCK
from selfpatch.core.lock import locked
from selfpatch.core.machine import num_cores
from selfpatch.core.text_files import read_json
from selfpatch.data.decode.pillow import BadImage
from selfpatch.data.images import NoneReadable, evenly_spread
from selfpatch.data.prepare.config import PrepareConfig
from selfpatch.data.prepare.convert import PreparedImage, prepared
from selfpatch.data.prepare.shards import RECORDS, ShardRecord, ShardWriter, finished_shards
from selfpatch.data.prepare.summary import Prepared, read_summary, write_summary
from selfpatch.data.sources.index import ImageIndex
from selfpatch.data.workers import computed_ahead

CHUNK = 16
"""Images that a process prepares at once."""
REQUEST = "request.json"
Progress = Callable[[str, int, int], None]
"""Function of a description, the number of images done, and the total."""


def prepare(
    data: str | Path,
    out: str | Path,
    config: PrepareConfig | None = None,
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> Prepared:
    """Write the images of a source to tar shards, large ones made smaller: `prepare("photos", "shards")`.

    `out` is then a source like any other: `pretrain("shards")`. A call that was stopped continues when it is called
    again, and gives the same files. Images keep the order of the source. Damaged ones are left out and listed.

    Args:
        data: folder of images, tar shard, zip archive, Parquet file, text file that lists any of these, or URL of one.
        out: folder for the shards, and for the files that `data.prepare.summary` documents.
        config: settings; if None, the defaults.
        progress: called with a description, the number of images done, and the total.
        settings: fields of `PrepareConfig`; they override `config`.

    Returns:
        The numbers of images, of damaged ones and of near-duplicates.

    Raises:
        ValueError: there are no images, none can be read, or the folder holds something else.
    """
    config, folder = override(config or PrepareConfig(), settings), Path(out)
    index = ImageIndex.open(data)
    index.require_files()
    request = {"images": len(index), "fingerprint": index.fingerprint, **recorded(config)}
    _require_own_folder(folder, request)
    make_folder(folder)
    with locked(folder):
        if (complete := read_summary(folder)) is not None and complete[0] == request:
            return complete[1]
        write_atomically(folder / RECORDS / REQUEST, json.dumps(request))
        for leftover in folder.glob(".*.tar.*.tmp"):
            leftover.unlink()
        indices = evenly_spread(np.arange(len(index)), config.limit or len(index))
        records = [*finished_shards(folder)]
        with contextlib.closing(_written(folder, index, indices, config, records, progress)) as written:
            records += written
        if not any(len(record.images) for record in records):
            raise NoneReadable(len(indices), f"{records[0].damaged[0][0]}: {records[0].damaged[0][1]}")
        outcome = write_summary(folder, records, request, config.max_distance)
        shutil.rmtree(folder / RECORDS)
    return outcome


class _Outcome(NamedTuple):
    """An image that a process has prepared, or the reason why it could not."""

    number: int  # index of the image in the source
    image: PreparedImage | None
    reason: str = ""


def _written(
    folder: Path,
    index: ImageIndex,
    indices: np.ndarray,
    config: PrepareConfig,
    finished: Sequence[ShardRecord],
    progress: Progress | None,
) -> Generator[ShardRecord]:
    """Write the shards that are missing, and yield their records."""
    first = finished[-1].end if finished else 0
    requests = (indices[start : start + CHUNK].tolist() for start in range(first, len(indices), CHUNK))
    workers = num_cores() if config.workers is None else config.workers
    with contextlib.closing(computed_ahead(partial(_outcomes, index, config), requests, workers)) as chunks:
        outcomes = enumerate(itertools.chain.from_iterable(chunks), start=first + 1)
        for number in itertools.count(len(finished)):
            if first == len(indices):
                return
            with ShardWriter(folder, number) as shard:
                for first, outcome in outcomes:
                    name = index.name(outcome.number)
                    if outcome.image is None:
                        shard.add_damaged(name, outcome.reason)
                    else:
                        shard.add(outcome.number, name, outcome.image)
                    if progress is not None:
                        progress("prepare", first, len(indices))
                    if shard.size >= config.shard_mb * 1e6:
                        break
                yield shard.close(first)


def _outcomes(index: ImageIndex, config: PrepareConfig, chunk: Sequence[int]) -> list[_Outcome]:
    return [_outcome(index, config, i) for i in chunk]


def _outcome(index: ImageIndex, config: PrepareConfig, i: int) -> _Outcome:
    try:
        return _Outcome(i, prepared(index.file(i), config.max_side, config.quality))
    except BadImage as error:
        return _Outcome(i, None, error.reason)


def _require_own_folder(folder: Path, request: Mapping[str, Any]) -> None:
    """Raise ValueError for a folder that holds anything but the same preparation, complete or not."""
    if not folder.is_dir():
        return
    unfinished = folder / RECORDS / REQUEST
    # A killed process leaves its lock, and a full disk the folder of the records.
    if not unfinished.is_file() and {path.name for path in folder.iterdir()} <= {LOCK, RECORDS}:
        return
    complete = read_summary(folder)
    before = complete[0] if complete else read_json(unfinished) if unfinished.is_file() else None
    if before is None:
        raise ValueError(f"{folder} is not empty; give a new folder with --out")
    if before != request:
        names = [name for name in request if before.get(name) != request[name]]
        raise ValueError(
            f"{folder} holds images that were prepared from others, or in another way (other {', '.join(names)}); "
            "give a new folder with --out"
        )
