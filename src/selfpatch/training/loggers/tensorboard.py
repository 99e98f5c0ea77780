"""TensorBoard: an event file in the run directory."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import yaml

from selfpatch.config.schema import flat
from selfpatch.data.decode.pillow import read_image
from selfpatch.training.loggers.protocol import LoggedRun

FOLDER = "tensorboard"
SHOWN_METRICS = ("eval/view_matching", "eval/knn_top1", "loss/loss")
"""Columns of the table of hyperparameters that are results."""


class TensorBoardLogger:
    """Writer of tensorboard/: scalars, pictures, and the settings as hyperparameters and as text."""

    records: ClassVar = "TensorBoard events"
    rewinds: ClassVar = True

    def start(self, run: LoggedRun) -> None:
        """Open the event file; the settings are written by a new run alone."""
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        _leave_errors_of_events_to_the_writer()
        # TensorBoard hides events of earlier files from this step on.
        self._writer = SummaryWriter(str(run.folder / FOLDER), purge_step=run.step, flush_secs=30)
        if run.step == 0:
            text = yaml.safe_dump(dict(run.settings), sort_keys=False, allow_unicode=True)
            self._writer.add_text("settings", "\n".join(f"    {line}" for line in text.splitlines()), global_step=0)
            self._add_hyperparameters(flat(run.settings))

    def _add_hyperparameters(self, settings: Mapping[str, Any]) -> None:
        """Fill the tab HPARAMS, without the second event file that `SummaryWriter.add_hparams` makes for it."""
        from torch.utils.tensorboard.summary import hparams

        values = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in settings.items()
            if value is not None
        }
        for summary in hparams(values, dict.fromkeys(SHOWN_METRICS, 0.0)):
            self._writer._get_file_writer().add_summary(summary)

    def log(self, step: int, numbers: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        """Add scalars and pictures."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, global_step=step)
        for name, path in pictures.items():
            self._writer.add_image(name, np.asarray(read_image(path)), global_step=step, dataformats="HWC")

    def close(self) -> None:
        """Write the events that are still in memory."""
        self._writer.close()


def _leave_errors_of_events_to_the_writer() -> None:
    """Print no traceback of TensorBoard's thread on a full disk: the next call of the writer raises the error."""
    others = threading.excepthook

    def report(failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            others(failed)

    if others.__module__ != __name__:
        threading.excepthook = report
