"""TensorBoard events of a run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class TensorBoardLogger:
    """Event writer that opens at the first record; training continues without it if TensorBoard is missing or fails."""

    def __init__(self, folder: Path) -> None:
        self.purge_step: int | None = None
        """First step whose earlier events TensorBoard hides, set before the first record of a resumed run."""
        self._folder = folder
        self._writer: Any = None
        self._failed = False

    def record(self, row: Mapping[str, Any]) -> None:
        """Write the numbers of one row at its "step"."""
        if self._failed:
            return
        with self._disabled_by_an_error():
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter  # takes a second to import

                self._writer = SummaryWriter(str(self._folder), purge_step=self.purge_step, flush_secs=30)
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    self._writer.add_scalar(name, value, global_step=row["step"])

    def close(self) -> None:
        """Write the events that are still in memory."""
        if self._writer is not None:
            with self._disabled_by_an_error():
                self._writer.close()
            self._writer = None

    @contextmanager
    def _disabled_by_an_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a missing package, a version that clashes, a full disk
            self._failed, self._writer = True, None
            warnings.warn(f"no TensorBoard events ({error}); metrics.jsonl holds every number", stacklevel=5)
