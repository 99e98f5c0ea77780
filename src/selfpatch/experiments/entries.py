"""Entries of a suite: what a file lists, and the outcome of each."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from selfpatch.config.parsing import yaml_values
from selfpatch.config.schema import plain
from selfpatch.core.folders import files_below
from selfpatch.core.text_files import read_text
from selfpatch.evaluation.registry import EVALUATIONS
from selfpatch.evaluation.result import Result

Values = Mapping[str, Any]
LISTS = ("image_list", "labels", "results", "sequence_list", "train_part")
"""Settings that may be the path of a file or folder, which is looked for below the root of the data first."""
BUILT_IN = Path(str(resources.files("selfpatch") / "suites"))
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
    was_refused: bool = False
    """True if the entry cannot run, e.g. because its data are missing, which was found before any other ran."""


def suite_names() -> list[str]:
    """Return the names of the built-in suites."""
    return sorted(path.stem for path in files_below(BUILT_IN, (".yaml",)))


def is_built_in(suite: str | Path) -> bool:
    """Return whether a suite is a built-in one by its name."""
    return str(suite) in suite_names()


def read_suite(suite: str | Path, data_root: str | Path | None = None, limit: int | None = None) -> list[Entry]:
    """Return the evaluations of a suite, after checking every name and value.

    Args:
        suite: name of a built-in suite, or path of a YAML file.
        data_root: folder that relative paths of data start from, and those of lists of images that lie there; the
            current folder if None.
        limit: largest number of images per split and of training steps, see `limited`; if None, as the file says.

    Raises:
        ValueError: the file is missing or no list of evaluations, or an evaluation or a setting is unknown.
    """
    path = BUILT_IN / f"{suite}.yaml" if is_built_in(suite) else Path(suite).expanduser()
    hint = f"use a built-in suite ({', '.join(suite_names())}) or a YAML file like {EXAMPLE}"
    items = yaml_values(read_text(path, hint), str(suite))
    if not isinstance(items, list) or not items:
        raise ValueError(f"{suite} holds no list of evaluations; write one a line, like {EXAMPLE}")
    entries = [read_entry(number, item, f"entry {number} of {suite}") for number, item in enumerate(items, start=1)]
    if limit is not None:
        entries = [limited(entry, limit) for entry in entries]
    if data_root is None:
        return entries
    root = Path(data_root).expanduser()
    return [replace(e, data=str(root / e.data), settings=_with_lists(e.settings, root)) for e in entries]


def limited(entry: Entry, limit: int) -> Entry:
    """Return an entry whose setting `limit`, which every evaluation has, is at most `limit`, and so are its `steps`.

    Trainings that are given in epochs become shorter with their images; tens of thousands of steps are no quick look.

    Raises:
        ValueError: the limit is less than 1.
    """
    settings = {**entry.settings, "limit": min(limit, entry.settings["limit"] or limit)}
    if settings.get("steps") is not None:
        settings["steps"] = min(limit, settings["steps"])
    where = f"{entry.folder} with a limit of {limit}"
    return replace(entry, settings=plain(EVALUATIONS[entry.evaluation].from_settings(settings, where)))


def _with_lists(settings: Values, root: Path) -> dict[str, Any]:
    """Return settings with the paths of the lists that lie below a folder; others may be shares such as 1%."""
    given = {name: settings[name] for name in LISTS if settings.get(name) is not None}
    return {**settings, **{name: str(root / value) for name, value in given.items() if (root / value).exists()}}


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
