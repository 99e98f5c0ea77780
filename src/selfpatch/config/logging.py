"""Settings of the loggers of a run."""

from typing import Literal

from selfpatch.config.schema import Name, settings

LoggerName = Literal["tensorboard", "wandb", "mlflow"]


@settings
class LoggingConfig:
    """Programs that show numbers, pictures and settings of a run; metrics.jsonl holds the numbers in any case."""

    loggers: tuple[LoggerName, ...] = ("tensorboard",)
    """Loggers: any of tensorboard, wandb (`pip install 'selfpatch[wandb]'`) and mlflow (`pip install
    'selfpatch[mlflow]'`), or none. They write into the run directory: W&B is offline unless WANDB_MODE=online, and
    MLflow has a file store unless MLFLOW_TRACKING_URI names another."""
    project: Name = "selfpatch"
    """Project of W&B and experiment of MLflow, in which the run has the name of its folder."""

    def __post_init__(self) -> None:
        """Check that no logger is named twice."""
        if len(set(self.loggers)) < len(self.loggers):
            raise ValueError(f"loggers is {list(self.loggers)}, which names one twice; name each once")
