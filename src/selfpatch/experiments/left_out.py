"""Evaluations of a suite that have no result, and the reason, kept in `left_out.json` for its scorecard."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from selfpatch.core.text import visible
from selfpatch.evaluation.registry import EVALUATIONS
from selfpatch.evaluation.result import Result
from selfpatch.experiments.entries import Outcome
from selfpatch.experiments.records import as_json, read_json, write_json

FILE = "left_out.json"
MAX_REASON = 100
"""Largest number of characters of a reason."""


@dataclass(frozen=True)
class LeftOut:
    """Evaluation without a result."""

    folder: str
    """Name of the folder that its results would be in."""
    evaluation: str
    settings: Mapping[str, Any]
    """Settings that a result would record as far as they were given, and `data`."""
    state: str
    """`data missing`, `refused`, `failed` or `not run yet`."""
    reason: str = ""
    """Error on one line; empty if the state explains it."""

    @property
    def phrase(self) -> str:
        """State and reason in one phrase."""
        return f"{self.state}: {self.reason}" if self.reason else self.state

    @property
    def request(self) -> Result:
        """Result without metrics, whose settings are those that were asked for."""
        return Result(self.evaluation, {}, settings=self.settings)

    def is_answered_by(self, result: Result) -> bool:
        """Return whether a result of another network has the settings that this evaluation was given.

        Settings that were left to the data or the network are None here, and are not compared.
        """
        given, found = as_json(dict(self.settings)), as_json(dict(result.settings))
        ignored = EVALUATIONS[self.evaluation].network_settings if self.evaluation in EVALUATIONS else frozenset()
        return (
            result.name == self.evaluation
            and Path(str(given.pop("data", ""))).name == Path(str(found.pop("data", ""))).name
            and all(
                found.get(name, value) == value
                for name, value in given.items()
                if value is not None and name not in ignored
            )
        )


def write_left_out(outcomes: Sequence[Outcome], out: Path) -> None:
    """Write `left_out.json` in the folder of a suite; it holds an empty list if every evaluation has a result."""
    write_json(out / FILE, as_json([asdict(_left_out(outcome)) for outcome in outcomes if outcome.result is None]))


def read_left_out(folder: Path) -> list[LeftOut]:
    """Return what `write_left_out` wrote in a folder; empty if there is no such file.

    Raises:
        ValueError: the file is none that a suite wrote.
    """
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        return TypeAdapter(list[LeftOut]).validate_python(read_json(path))
    except ValidationError:
        raise ValueError(f"{path} is no list that a suite wrote; remove it, or run the suite again") from None


def _left_out(outcome: Outcome) -> LeftOut:
    entry = outcome.entry
    config = EVALUATIONS[entry.evaluation].from_settings(entry.settings)
    settings = {**config.recorded(), "data": entry.data}
    if outcome.error is None:
        return LeftOut(entry.folder, entry.evaluation, settings, "not run yet")
    if outcome.was_refused and not Path(entry.data).expanduser().exists():
        return LeftOut(entry.folder, entry.evaluation, settings, "data missing")
    # Up to the semicolon an error says what was wrong, then what to do about it.
    reason = visible(" ".join(outcome.error.partition(";")[0].split()))
    reason = reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]}..."
    return LeftOut(entry.folder, entry.evaluation, settings, "refused" if outcome.was_refused else "failed", reason)
