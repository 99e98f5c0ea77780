"""Weights & Biases: an offline run in the run directory, or a run on its server where the environment says so."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from selfpatch.training.loggers.protocol import LoggedRun


class WandbLogger:
    """Writer of a W&B run: numbers, pictures and settings.

    Nothing is sent unless WANDB_MODE=online: `wandb sync RUN/wandb/offline-run-*` uploads an offline run. A resumed run
    continues the W&B run of the same id. Entity, server and key come from W&B's own variables and files.
    """

    records: ClassVar = "W&B records"
    rewinds: ClassVar = False

    def start(self, run: LoggedRun) -> str:
        """Begin the W&B run, or continue the one with the run's id, and return the id."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # reports crashes to W&B, also when offline
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(
            project=run.project, name=run.folder.name, dir=run.folder, id=run.id, resume="allow",
            config={**run.settings},
            mode=None if "WANDB_MODE" in os.environ else "offline",
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )  # fmt: skip
        # W&B's own steps count calls of `log` and only rise. Curves are drawn over those of the run.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        return str(self._run.id)

    def log(self, step: int, numbers: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        """Add numbers and pictures as one row of the history."""
        self._run.log({"step": step, **numbers, **{name: self._image(str(path)) for name, path in pictures.items()}})

    def close(self) -> None:
        """End the W&B run."""
        self._run.finish()
