"""The metrics log of a run: metrics.jsonl, and the same numbers as TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfpatch.core.atomic_io import clear_error, write_atomically
from selfpatch.training.loggers.tensorboard import TensorBoardLogger

FILE = "metrics.jsonl"

Row = Mapping[str, float | int | str | None]
"""One record: plain Python values by name, "step" among them."""


class MetricsLogger:
    """Writer of metrics.jsonl and tensorboard/ in a run directory, on the main process only."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / FILE
        self._tensorboard = TensorBoardLogger(folder / "tensorboard")

    def record(self, row: Row) -> None:
        """Append one line to metrics.jsonl and its numbers to TensorBoard.

        metrics.jsonl holds NaN and infinities as null, which every JSON reader takes for a missing value; TensorBoard
        shows them as they are.
        """
        assert "step" in row, "a record without its step cannot be rewound"
        finite = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in row.items()}
        with clear_error(self._file), open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite, allow_nan=False) + "\n")
        self._tensorboard.record(row)

    def rows(self) -> list[dict[str, Any]]:
        """Return all records, as `read_metrics` does."""
        return read_metrics(self._folder)

    def rewind(self, step: int) -> None:
        """Drop the records of `step` and later ones, in TensorBoard too, before a run is resumed."""
        kept = [row for row in self.rows() if row["step"] < step]
        write_atomically(self._file, "".join(json.dumps(row) + "\n" for row in kept))
        self._tensorboard.purge_step = step

    def close(self) -> None:
        """Write the TensorBoard events that are still in memory."""
        self._tensorboard.close()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run directory; a line that a kill left half-written is skipped."""
    path = folder / FILE
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else ():
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict) and "step" in row:
                rows.append(row)
    return rows
