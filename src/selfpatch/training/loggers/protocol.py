"""The protocol of a logger, and the run that it shows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol


@dataclass(frozen=True)
class LoggedRun:
    """Facts about a run that a logger shows."""

    folder: Path
    """The run directory, whose name is the name of the run."""
    project: str
    """Name of the group of runs that are compared with one another."""
    settings: Mapping[str, Any]
    """All settings, as plain nested values."""
    step: int = 0
    """Step that the records continue from; 0 for a new run."""
    id: str | None = None
    """Identifier that the logger returned when the run began; None for a new run."""


class Logger(Protocol):
    """Program that shows the numbers, pictures and settings of a run while it trains.

    It is used on the main process only. Its package is imported in `start`. Any method may raise: the run goes on
    without the logger.
    """

    records: ClassVar[str]
    """Name of the records in warnings, e.g. `TensorBoard events`."""
    rewinds: ClassVar[bool]
    """True if records from `LoggedRun.step` on disappear when a run is resumed; otherwise none is given twice."""

    def start(self, run: LoggedRun) -> str | None:
        """Begin or continue the record of a run, and return its identifier if it needs one to be continued."""

    def log(self, step: int, numbers: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        """Add numbers, by names such as `loss/patch`, and picture files after a number of steps."""

    def close(self) -> None:
        """Write what is still in memory; `start` has been called before."""
