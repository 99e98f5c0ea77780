"""The table of loggers."""

import importlib.util

from selfpatch.config.logging import LoggerName, LoggingConfig
from selfpatch.training.loggers.mlflow import MlflowLogger
from selfpatch.training.loggers.protocol import Logger
from selfpatch.training.loggers.tensorboard import TensorBoardLogger
from selfpatch.training.loggers.wandb import WandbLogger

LOGGERS: dict[LoggerName, type[Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
}
EXTRAS: tuple[LoggerName, ...] = ("wandb", "mlflow")
"""Loggers whose package, of the same name, does not come with selfpatch."""


def require_loggers(config: LoggingConfig) -> None:
    """Raise ValueError if the package of a logger is not installed."""
    for name in config.loggers:
        if name in EXTRAS and importlib.util.find_spec(name) is None:
            raise ValueError(
                f"logging.loggers names {name}, which is not installed; run `pip install 'selfpatch[{name}]'`, or "
                "leave it out"
            )


def make_loggers(config: LoggingConfig) -> dict[str, Logger]:
    """Return the loggers of a run by name; they import their packages when they start."""
    return {name: LOGGERS[name]() for name in config.loggers}
