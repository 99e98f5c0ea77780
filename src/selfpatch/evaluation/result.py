"""Result of an evaluation: metrics, a table of rows, and their provenance."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired

import pydantic
from rich.table import Table
from typing_extensions import TypedDict

from selfpatch.config.json_schema import check_json
from selfpatch.core.atomic_io import write_atomically
from selfpatch.core.console import Report, in_lines, literal, plain_table
from selfpatch.core.dry_run import in_dry_run
from selfpatch.core.machine import current_versions
from selfpatch.core.safe_paths import path_below
from selfpatch.core.text import counted, format_number, visible
from selfpatch.core.text_files import read_json
from selfpatch.evaluation.degenerate import Degenerate
from selfpatch.evaluation.workload import DryRunEnds, Workload

Cell = str | int | float
NUM_NAMED = 5
"""Number of images that a note names."""
Progress = Callable[[str, int, int], None]
"""Callback of an evaluation: called with a description, the number of items done and the number of all items."""


def silent(description: str, done: int, total: int) -> None:
    """Report nothing."""


@dataclass(frozen=True)
class Output:
    """Files and progress of a running evaluation."""

    folder: Path | None = None
    """Existing folder for pictures and for checkpoints that a second call continues; if None, nothing is written."""
    progress: Progress = silent

    def announce(self, workload: Workload) -> None:
        """Declare the workload, once all that needs no image is checked; a dry run ends here."""
        if in_dry_run():
            raise DryRunEnds(workload)


NO_OUTPUT = Output()


@dataclass(frozen=True)
class Provenance:
    """Source of the weights that were measured."""

    source: str
    """Name that the user gave: a run directory, a file, timm:NAME or hf:OWNER/NAME."""
    sha256: str | None = None
    """Hash of the file, or of the tensors (`network_sha256`) if there is no single file; None without a network."""


class _StoredProvenance(TypedDict):
    source: str
    sha256: NotRequired[str | None]


class _StoredDegenerate(TypedDict):
    what: str
    count: int
    total: int
    items: list[str]


class _StoredResult(TypedDict):
    """The fields of `Result` in a file."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")  # type: ignore[misc]

    name: str
    metrics: dict[str, float]
    rows: NotRequired[list[dict[str, Cell]]]
    settings: NotRequired[dict[str, Any]]
    weights: _StoredProvenance | None
    versions: NotRequired[dict[str, str]]
    pictures: NotRequired[list[Any]]
    per_image: NotRequired[dict[str, dict[str, float]]]
    notes: NotRequired[list[str]]
    degenerate: NotRequired[list[_StoredDegenerate]]
    device: NotRequired[str | None]
    costs: NotRequired[dict[str, float]]


@dataclass(frozen=True, repr=False)
class Result(Report):
    """Outcome of one evaluation; `print` shows its table.

    Attributes:
        name: name of the evaluation, e.g. `davis`.
        metrics: numbers to quote, by the names of their field.
        rows: lines of the table, all with the same columns, e.g. one for each object, class or k.
        settings: every value that decides the numbers, so that they can be reproduced.
        weights: source of the network; None for baselines and scores of ready-made results.
        versions: versions of the software.
        pictures: paths of the written pictures, relative to the result's folder.
        per_image: metrics of each image or sequence by its name, for the intervals of `compare`.
        notes: caveats, e.g. unreadable images.
        degenerate: inputs that make the numbers meaningless, e.g. constant features.
        device: name of the device that computed the numbers.
        costs: costs by unit, `seconds` or `frames/s`. Results that differ in costs or device only are equal.
    """

    name: str
    metrics: Mapping[str, float]
    rows: Sequence[Mapping[str, Cell]] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: Provenance | None = None
    versions: Mapping[str, str] = field(default_factory=current_versions)
    pictures: Sequence[str] = ()
    per_image: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: Sequence[str] = field(default_factory=list)
    degenerate: Sequence[Degenerate] = field(default_factory=list)
    device: str | None = field(default=None, compare=False)
    costs: Mapping[str, float] = field(default_factory=dict, compare=False)

    def save(self, path: str | Path) -> None:
        """Write the result as JSON, atomically."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"
        write_atomically(Path(path), text)

    @classmethod
    def load(cls, path: str | Path) -> "Result":
        """Read a result that `save` wrote, or the `result.json` of an evaluation's folder.

        Raises:
            ValueError: the file is missing or is not a result.
        """
        path = Path(path) / "result.json" if Path(path).is_dir() else path
        if not Path(path).exists():
            raise ValueError(f"no result at {path}; give the path of a result.json")
        try:
            values = check_json(read_json(Path(path)), _StoredResult, str(path))
        except ValueError as error:
            raise ValueError(f"{path} is not a result; give a result.json that an evaluation wrote ({error})") from None
        for picture in values.get("pictures", ()):
            path_below(Path(path).parent, picture, path)
        weights, degenerate = values.pop("weights"), values.pop("degenerate", [])
        return cls(
            **values,
            weights=None if weights is None else Provenance(**weights),
            degenerate=[Degenerate(**one) for one in degenerate],
        )

    @property
    def warnings(self) -> list[str]:
        """Sentences on degenerate inputs."""
        return [f"Warning: {one}." for one in self.degenerate]

    def __rich__(self) -> Table:
        return self.table()

    def table(self) -> Table:
        """Return a table for the terminal: the rows, with metrics, costs, notes and warnings as caption.

        Without rows, the metrics are the rows.
        """
        rows = self.rows or [{"metric": name, "value": value} for name, value in self.metrics.items()]
        numbers = (
            in_lines(f"{name} {format_number(value, '.4f')}" for name, value in self.metrics.items())
            if self.rows
            else []
        )
        numbers += in_lines(f"{value:.4g} {unit}" for unit, value in self.costs.items())
        caption = "\n".join(visible(line) for line in [*numbers, *self.notes, *self.warnings])
        debias = self.settings.get("debias")
        title = self.name + (f", positions removed (debias {debias})" if debias else "")
        # A caption is as wide as its table, and is broken at any space where it is wider.
        table = plain_table(title=literal(title, "table.title"), min_width=max(map(len, numbers), default=0))
        table.caption = literal(f"\n{caption}", "table.caption") if caption else None
        for column in rows[0] if rows else ():
            justify: Literal["left", "right"] = "left" if isinstance(rows[0][column], str) else "right"
            table.add_column(literal(column), justify=justify, overflow="fold")
        for row in rows:
            cells = [
                format_number(cell, ".4f") if isinstance(cell, float) else visible(str(cell)) for cell in row.values()
            ]
            table.add_row(*map(literal, cells))
        return table


def unreadable_note(names: list[str]) -> list[str]:
    """Return the note on unreadable images for `Result.notes`; it is empty where there are none."""
    return [f"{counted(len(names), 'image')} could not be read, left out: {first_names(names)}"] if names else []


def first_names(names: list[str]) -> str:
    """Return the first few of some names, as a note lists them."""
    return ", ".join(names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")
