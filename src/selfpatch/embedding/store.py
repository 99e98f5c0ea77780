"""Features on disk while they are computed: one raw file per column, and a byte per image that says whether it is done.

::

    OUT.partial/request.json     weights, images and settings, which must be the same when the work continues
    OUT.partial/image.raw        [n, D], row by row; other columns likewise
    OUT.partial/state.raw        [n] uint8: MISSING, DONE or UNREADABLE
    OUT.partial/stamp.raw        [n, 2] int64: size and time of each image, by which changed ones are encoded again

A row is written before its state, so that the images of a killed process are encoded again. Processes write different
rows.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from selfpatch.core.atomic_io import clear_error, write_atomically
from selfpatch.core.text_files import read_json

MISSING, DONE, UNREADABLE = 0, 1, 2
ROWS_AT_ONCE = 1024
"""Rows that are held in memory when columns are read."""


class Column(NamedTuple):
    """Type and shape of a row of numbers."""

    dtype: str
    shape: tuple[int, ...]


OWN_COLUMNS = {"state": Column("uint8", ()), "stamp": Column("int64", (2,))}
"""Columns of the store itself."""


class FeatureStore:
    """Columns of numbers with a row for each image.

    Args:
        folder: where the files are; made by `begin`.
        columns: columns by name.
        num_rows: number of images.
    """

    def __init__(self, folder: Path, columns: Mapping[str, Column], num_rows: int) -> None:
        self.folder, self.columns, self.num_rows = folder, dict(columns), num_rows

    @property
    def num_bytes(self) -> int:
        """Bytes of the columns, without those of the store itself."""
        return self.num_rows * sum(map(_bytes_of, self.columns.values()))

    def begin(self, request: Mapping[str, Any], stamps: np.ndarray) -> None:
        """Make the files, or check that those of an earlier, unfinished call are of the same request.

        Rows whose `stamps`, int64 [n, 2], are not those of the earlier call become MISSING.

        Raises:
            ValueError: the folder holds features of another request.
            OSError: there is no room.
        """
        path, request = self.folder / "request.json", json.loads(json.dumps(request))
        if path.is_file():
            before = read_json(path)
            known = before if isinstance(before, dict) else {}
            if different := [key for key in request if known.get(key) != request[key]]:
                raise ValueError(
                    f"{self.folder} holds unfinished features of another request ({different[0]} was "
                    f"{known.get(different[0])!r} and is {request[different[0]]!r}); remove it, or name another --out"
                )
            stored = np.fromfile(self._file("stamp"), np.int64).reshape(-1, 2)
            changed = np.flatnonzero((stored != stamps).any(1))
            self.write("state", changed, np.full(len(changed), MISSING))
            self.write("stamp", np.arange(len(stamps)), stamps)
            return
        with clear_error(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, column in self._all_columns().items():
                with open(self._file(name), "wb") as file:
                    file.truncate(self.num_rows * _bytes_of(column))
        self.write("stamp", np.arange(len(stamps)), stamps)
        write_atomically(path, json.dumps(request, indent=1) + "\n")

    def write(self, name: str, rows: np.ndarray, values: np.ndarray) -> None:
        """Write rows of a column; `values` are [len(rows), ...], and `rows` ascend."""
        column = self._all_columns()[name]
        values = np.ascontiguousarray(values, column.dtype).reshape(len(rows), *column.shape)
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        with clear_error(self.folder), open(self._file(name), "r+b") as file:
            for run, block in zip(np.split(rows, breaks), np.split(values, breaks), strict=True):
                if len(run):
                    file.seek(int(run[0]) * _bytes_of(column))
                    file.write(block.tobytes())

    def rows(self, state: int) -> np.ndarray:
        """Return the numbers of the rows of a state."""
        return np.flatnonzero(np.fromfile(self._file("state"), np.uint8) == state)

    def chunks(self, name: str, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the given rows of a column, which ascend, `ROWS_AT_ONCE` at a time."""
        column = self.columns[name]
        for first in range(0, len(rows), ROWS_AT_ONCE):
            chosen = rows[first : first + ROWS_AT_ONCE]
            count, offset = int(chosen[-1] - chosen[0] + 1), int(chosen[0]) * _bytes_of(column)
            row_items = int(np.prod(column.shape, dtype=np.int64))
            block = np.fromfile(self._file(name), column.dtype, count * row_items, offset=offset)
            yield block.reshape(count, *column.shape)[chosen - chosen[0]]

    def remove(self) -> None:
        """Remove the files, and the folder unless it holds others."""
        for path in (self.folder / "request.json", *map(self._file, self._all_columns())):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _all_columns(self) -> dict[str, Column]:
        return {**self.columns, **OWN_COLUMNS}

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.raw"


def _bytes_of(column: Column) -> int:
    return int(np.prod(column.shape, dtype=np.int64)) * np.dtype(column.dtype).itemsize
