"""The metrics log of a run: metrics.jsonl, and the same numbers as TensorBoard events."""

import contextlib
import json
import math
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selfpatch.core.atomic_io import clear_error, write_atomically

FILE = "metrics.jsonl"

Row = Mapping[str, float | int | str | None]
"""One record: plain Python values by name, "step" among them."""


class MetricsLogger:
    """Writer of metrics.jsonl and tensorboard/ in a run directory, on the main process only.

    The event file opens at the first record. Training continues without it if TensorBoard is missing or fails.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._file = folder, folder / FILE
        self._events: Any = None
        self._purge_step: int | None = None  # TensorBoard hides events of earlier runs from this step on
        self._tensorboard_failed = False

    def record(self, row: Row) -> None:
        """Append one line to metrics.jsonl and its numbers to TensorBoard.

        In metrics.jsonl, NaN and infinities become null, as JSON requires; TensorBoard shows them.
        """
        assert "step" in row, "a record without its step cannot be rewound"
        finite = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in row.items()}
        with clear_error(self._file), open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite, allow_nan=False) + "\n")
        if self._tensorboard_failed:
            return
        with self._without_tensorboard_after_errors():
            if self._events is None:
                from torch.utils.tensorboard import SummaryWriter  # takes a second to import

                folder = str(self._folder / "tensorboard")
                _leave_errors_of_events_to_the_writer()
                self._events = SummaryWriter(folder, purge_step=self._purge_step, flush_secs=30)
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    self._events.add_scalar(name, value, global_step=row["step"])

    def rows(self) -> list[dict[str, Any]]:
        """Return all records, as `read_metrics` does."""
        return read_metrics(self._folder)

    def rewind(self, step: int) -> None:
        """Drop the records of `step` and later ones, in TensorBoard too, before a run is resumed."""
        kept = [row for row in self.rows() if row["step"] < step]
        write_atomically(self._file, "".join(json.dumps(row) + "\n" for row in kept))
        self._purge_step = step

    def close(self) -> None:
        """Write the TensorBoard events that are still in memory."""
        if self._events is not None:
            with self._without_tensorboard_after_errors():
                self._events.close()
            self._events = None

    @contextlib.contextmanager
    def _without_tensorboard_after_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a missing package, a version that clashes, a full disk
            self._tensorboard_failed, self._events = True, None
            warnings.warn(f"no TensorBoard events ({error}); metrics.jsonl holds every number", stacklevel=4)


def _leave_errors_of_events_to_the_writer() -> None:
    """Print no traceback of TensorBoard's thread on a full disk: the next call of the writer raises the error."""
    others = threading.excepthook

    def report(failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            others(failed)

    if others.__module__ != __name__:
        threading.excepthook = report


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run directory.

    Lines that are no record, such as one that a kill left half-written, are skipped. None stands for values that are
    neither text nor finite numbers.
    """
    path, rows = folder / FILE, []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else ():
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and _is_number(row.get("step")) and isinstance(row["step"], int):
                rows.append({name: x if _is_number(x) or isinstance(x, str) else None for name, x in row.items()})
    return rows


def read_numbers(folder: Path) -> list[dict[str, Any]]:
    """Return the records that `read_metrics` returns, with None for text too."""
    return [{name: None if isinstance(x, str) else x for name, x in row.items()} for row in read_metrics(folder)]


def _is_number(value: Any) -> bool:
    """Return whether a value is a number that can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
