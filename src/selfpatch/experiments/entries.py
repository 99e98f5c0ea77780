"""Entries of a suite: what a file lists, and the outcome of each."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfpatch.config.parsing import yaml_values
from selfpatch.config.schema import plain
from selfpatch.core.text_files import read_text
from selfpatch.evaluation.registry import EVALUATIONS
from selfpatch.evaluation.result import Result

Values = Mapping[str, Any]
EXAMPLE = "`- davis: {data: DAVIS, resolution: 240}`"


@dataclass(frozen=True)
class Entry:
    """One evaluation of a suite."""

    number: int
    """Position in the list, from 1."""
    evaluation: str
    data: str
    settings: Values
    """All settings of the evaluation, those not given at their defaults."""

    @property
    def folder(self) -> str:
        """Name of the folder of its results."""
        return f"{self.number}-{self.evaluation}"


@dataclass(frozen=True)
class Outcome:
    """State of an entry: a result, an error, or neither if it was not run yet."""

    entry: Entry
    result: Result | None = None
    error: str | None = None
    """Reason why there is no result."""
    was_done: bool = False
    """True if an earlier run of the suite produced the result."""


def read_suite(path: str | Path) -> list[Entry]:
    """Return the evaluations that a suite file lists, after checking every name and value.

    Raises:
        ValueError: the file is missing or no list of evaluations, or an evaluation or a setting is unknown.
    """
    items = yaml_values(read_text(Path(path).expanduser(), f"give a YAML file like {EXAMPLE}"), str(path))
    if not isinstance(items, list) or not items:
        raise ValueError(f"{path} holds no list of evaluations; write one a line, like {EXAMPLE}")
    return [read_entry(number, item, f"entry {number} of {path}") for number, item in enumerate(items, start=1)]


def read_entry(number: int, item: Any, where: str) -> Entry:
    """Return the evaluation `{davis: {data: DAVIS}}`, entry `number` of a list, after checking every name and value.

    Raises:
        ValueError: it is no evaluation, or a setting is unknown or has a wrong value. The sentence begins with `where`.
    """
    if not (isinstance(item, dict) and len(item) == 1 and all(isinstance(v, dict) for v in item.values())):
        raise ValueError(f"{where} is {item!r}; one evaluation with its settings is needed, like {EXAMPLE}")
    ((name, values),) = item.items()
    if name not in EVALUATIONS:
        raise ValueError(f"{where}: there is no evaluation {name!r}; use one of: {', '.join(EVALUATIONS)}")
    data = values.get("data")
    if not isinstance(data, str):
        raise ValueError(f"{where}: {name} needs data, the path of its data set, like {EXAMPLE}")
    settings = {key: value for key, value in values.items() if key != "data"}
    return Entry(number, name, data, plain(EVALUATIONS[name].from_settings(settings, f"{where}: {name}")))
