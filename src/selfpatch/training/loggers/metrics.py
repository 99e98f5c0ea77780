"""The metrics log of a run: metrics.jsonl, and loggers that show the same numbers."""

import contextlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.json_schema import check_json
from selfpatch.config.logging import LoggingConfig
from selfpatch.core.atomic_io import clear_error, write_atomically
from selfpatch.core.text_files import read_json
from selfpatch.training.loggers.protocol import LoggedRun, Logger
from selfpatch.training.loggers.registry import make_loggers

FILE = "metrics.jsonl"
IDS = "loggers.json"
"""File of the identifiers that loggers gave the run, by the logger's name."""

Numbers = Mapping[str, float]


class MetricsLogger:
    """Writer of metrics.jsonl in a run directory, which hands every record to the loggers; on the main process only.

    Loggers start at the first record. Training continues without one whose package is missing, or that fails.
    """

    def __init__(self, run: RunDirectory, config: LoggingConfig) -> None:
        self._run, self._file, self._project = run, run.path / FILE, config.project
        self._waiting: dict[str, Logger] = make_loggers(config)
        self._started: dict[str, Logger] = {}
        self._step = 0
        self._repeated: set[tuple[int, frozenset[str]]] = set()  # records that loggers which do not rewind have already

    def record(self, step: int, *, pictures: Mapping[str, Path] = MappingProxyType({}), **groups: Numbers) -> None:
        """Append one line to metrics.jsonl: the step, and the numbers of all groups by name.

        Loggers get pictures too, and names with their group, `loss/patch` for `loss={"patch": 1.5}`. In metrics.jsonl,
        NaN and infinities become null, as JSON requires; loggers show them.
        """
        row: dict[str, float | None] = {"step": step}
        for numbers in groups.values():
            row |= {name: x if math.isfinite(x) else None for name, x in numbers.items()}
        with clear_error(self._file), open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")
        self._start_loggers()
        tagged = {f"{group}/{name}": x for group, numbers in groups.items() for name, x in numbers.items()}
        repeated = (step, frozenset(row)) in self._repeated
        for name, logger in list(self._started.items()):
            if logger.rewinds or not repeated:
                with self._left_out_after_errors(name, logger):
                    logger.log(step, tagged, pictures)

    def rows(self) -> list[dict[str, Any]]:
        """Return all records, as `read_metrics` does."""
        return read_metrics(self._run.path)

    def has_evaluation(self, step: int) -> bool:
        """Return whether the metrics after a step are recorded; losses are in rows of their own."""
        return any(row["step"] == step and "loss" not in row for row in self.rows())

    def rewind(self, step: int) -> None:
        """Drop the records of `step` and later ones before a run is resumed, in loggers too that can."""
        rows = self.rows()
        kept = [row for row in rows if row["step"] < step]
        write_atomically(self._file, "".join(json.dumps(row) + "\n" for row in kept))
        self._step, self._repeated = step, {(row["step"], frozenset(row)) for row in rows if row["step"] >= step}

    def close(self) -> None:
        """Write what the loggers have in memory."""
        for name, logger in list(self._started.items()):
            with self._left_out_after_errors(name, logger):
                logger.close()
        self._started = {}

    def _start_loggers(self) -> None:
        while self._waiting:
            name, logger = self._waiting.popitem()
            with self._left_out_after_errors(name, logger):
                ids = _read_ids(self._run.path)
                known = ids.get(name)
                new = logger.start(LoggedRun(self._run.path, self._project, self._run.settings, self._step, known))
                self._started[name] = logger
                if new is not None and new != known:
                    write_atomically(self._run.path / IDS, json.dumps({**ids, name: new}) + "\n")

    @contextlib.contextmanager
    def _left_out_after_errors(self, name: str, logger: Logger) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # a missing package, a version that clashes, a full disk, a server that is gone
            self._started.pop(name, None)
            warnings.warn(f"no {logger.records} ({error}); metrics.jsonl holds every number", stacklevel=4)


def _read_ids(folder: Path) -> dict[str, str]:
    """Return the identifiers that loggers gave a run; none if the file is missing or damaged."""
    path = folder / IDS
    try:
        return check_json(read_json(path), dict[str, str], str(path))
    except ValueError:
        return {}


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
