"""MLflow: a file store in the run directory, or the tracking server that the environment names."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from selfpatch.config.schema import flat
from selfpatch.training.loggers.protocol import LoggedRun

FOLDER = "mlruns"
BATCH = 100
"""Largest number of parameters that MLflow takes at once."""
MAX_LENGTH = 6000
"""Largest number of characters of a parameter."""


class MlflowLogger:
    """Writer of an MLflow run: numbers, pictures as artifacts, and settings as parameters.

    It is written to mlruns/ in the run directory, unless MLFLOW_TRACKING_URI names another store or a server. A resumed
    run continues the MLflow run of the same id.
    """

    records: ClassVar = "MLflow records"
    rewinds: ClassVar = False

    def start(self, run: LoggedRun) -> str:
        """Begin the MLflow run in the experiment of the run's project, or continue it, and return its id."""
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # the only store of mlflow-skinny
            uri = (run.folder.absolute() / FOLDER).as_uri()
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._client, self._metric = MlflowClient(tracking_uri=uri), Metric
        if run.id is not None:
            self._client.update_run(run.id, status="RUNNING")
            self._id = run.id
            return self._id
        experiment = self._client.get_experiment_by_name(run.project)
        experiment_id = self._client.create_experiment(run.project) if experiment is None else experiment.experiment_id
        self._id = str(self._client.create_run(experiment_id, run_name=run.folder.name).info.run_id)
        params = [Param(name, str(value)[:MAX_LENGTH]) for name, value in flat(run.settings).items()]
        for first in range(0, len(params), BATCH):
            self._client.log_batch(self._id, params=params[first : first + BATCH])
        return self._id

    def log(self, step: int, numbers: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        """Add numbers, and pictures as artifacts named by the folder of their tag."""
        now = round(1000 * time.time())
        self._client.log_batch(self._id, metrics=[self._metric(name, x, now, step) for name, x in numbers.items()])
        for name, path in pictures.items():
            self._client.log_artifact(self._id, str(path), name)

    def close(self) -> None:
        """Mark the MLflow run as finished; a resumed one is running again."""
        self._client.set_terminated(self._id)
