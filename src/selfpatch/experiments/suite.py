"""A suite: many evaluations of one network, from one file, with one report; a stopped suite continues where it was.

::

    - davis: {data: DAVIS, resolution: 240}
    - davis: {data: DAVIS}
    - knn: {data: imagenet, ks: [10, 20]}

Settings and paths are as in `selfpatch evaluate davis --data DAVIS --resolution 240`. Files in the folder::

    1-davis/result.json     the result, next to pictures and other files of the evaluation
    1-davis/entry.json      the request, written once it is finished
    report.html, report.md  all tables, written anew after each evaluation
"""

import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from selfpatch.api.dry_run import DryRun
from selfpatch.api.encoder import open_network_or_baseline
from selfpatch.api.evaluate import evaluate, measure
from selfpatch.checkpoints.config import LoadConfig
from selfpatch.config.parsing import yaml_values
from selfpatch.config.schema import plain
from selfpatch.core import distributed
from selfpatch.core.atomic_io import make_folder, write_atomically
from selfpatch.core.dry_run import dry_run
from selfpatch.core.failures import sentence_of
from selfpatch.core.lock import locked_by_main
from selfpatch.core.text_files import read_text
from selfpatch.core.types import Encoder
from selfpatch.evaluation.registry import EVALUATIONS, complete_settings
from selfpatch.evaluation.result import Progress, Provenance, Result, network_sha256
from selfpatch.experiments.records import as_json, differences, read_json, write_json
from selfpatch.visualization.markdown import markdown_page
from selfpatch.visualization.report import MIME, Picture, Section, Table, Text, write_report

Values = Mapping[str, Any]
EVALUATIONS_FOLDER = Path("evaluations")
MAX_PICTURES = 12
"""Number of pictures of one evaluation that the report shows."""
EXAMPLE = "`- davis: {data: DAVIS, resolution: 240}`"
RunEvaluation = Callable[[str, str, Path, Values], Result]
"""Runs an evaluation, given its name, data, folder and settings."""


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


def evaluate_suite(
    suite: str | Path,
    weights: str | Encoder | Callable[[Tensor], Any],
    out: str | Path | None = None,
    *,
    device: str = "auto",
    patch_size: int | None = None,
    load_options: Values | None = None,
    notify: Callable[[Outcome], None] | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Run every evaluation that a file lists on one network; a second call continues where the first was stopped.

    Args:
        suite: the YAML file, see the module.
        weights: network or baseline, as `api.evaluate.evaluate` takes it.
        out: folder. If None, evaluations/SUITE-WEIGHTS.
        device: device of the network.
        patch_size: side of a patch in pixels, if `weights` is a function.
        load_options: how the weights are read.
        notify: called with each outcome.
        progress: called by the evaluations with their progress.

    Returns:
        The outcomes; an evaluation that fails does not stop the others, unless several processes run the suite.

    Raises:
        ValueError: the file or the weights are invalid, or the folder holds results of other settings or weights.
    """
    entries = read_suite(suite)
    with distributed.process_group(device):
        encoder, record = open_network_or_baseline(weights, device, patch_size, load_options)
        if out is None:  # `runs/photos` -> `photos`, `timm:vit_small` -> `timm-vit_small`
            source = "encoder" if record is None else record.source
            name = re.sub(r"[^\w.]+", "-", Path(source).name or source).strip("-.") or "encoder"
            out = EVALUATIONS_FOLDER / f"{Path(suite).stem}-{name}"
        loading = (
            {**plain(LoadConfig()), "normed_patches": True, **(load_options or {})} if isinstance(weights, str) else {}
        )
        outcomes = []
        make_folder(out)
        with locked_by_main(out):
            for outcome in evaluate_entries(entries, encoder, record, Path(out), loading, progress):
                outcomes.append(outcome)
                if notify is not None and distributed.is_main_process():
                    notify(outcome)
        return outcomes


def dry_run_suite(
    suite: str | Path, weights: str, out: str | Path | None = None, **loading: Any
) -> Iterator[tuple[Entry, DryRun | ValueError]]:
    """Yield the report of each evaluation of a suite, or why it is refused, which does not stop the others.

    `loading` are the arguments `device` and `load_options` of `evaluate_suite`.

    Raises:
        ValueError: the file is invalid, or the folder cannot be made.
    """
    with dry_run():
        make_folder(out or EVALUATIONS_FOLDER)
    for entry in read_suite(suite):
        try:
            yield entry, evaluate(entry.evaluation, weights, entry.data, dry_run=True, **loading, **entry.settings)
        except ValueError as error:
            yield entry, error


def evaluate_entries(
    entries: Sequence[Entry],
    encoder: Encoder | None,
    record: Provenance | None,
    out: Path,
    loading: Values,
    progress: Progress | None = None,
) -> Iterator[Outcome]:
    """Run the evaluations of a suite on an open network, as `run_suite` does.

    The encoder is None for a baseline that needs none. `record` is its source, if known, and `loading` tells how the
    weights were read, which identifies results as the weights do.
    """

    def run(name: str, data: str, folder: Path, settings: Values) -> Result:
        return measure(name, encoder, record, data, out=folder, progress=progress, **settings)

    title = f"Evaluation of {'encoder' if record is None else record.source}"
    return run_suite(entries, run, out, weights=identity(encoder, record, loading), title=title)


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


def identity(encoder: Encoder | None, record: Provenance | None, loading: Values) -> dict[str, Any] | None:
    """Return plain values that identify a network, or None if it cannot be identified, as a function cannot."""
    if record is not None and record.sha256 is not None:
        return {"sha256": record.sha256, **loading}
    if isinstance(encoder, nn.Module):
        return {"sha256": network_sha256(encoder), **loading}
    return None if record is None else {"source": record.source}


def run_suite(
    entries: Sequence[Entry], run: RunEvaluation, out: Path, *, weights: Values | None, title: str = "Evaluations"
) -> Iterator[Outcome]:
    """Run the evaluations that are not finished, and yield the outcome of each entry.

        for each entry:
            if it is finished with the same settings, data and weights, take its result
            else run it; an error is its outcome, and the next entry follows
            write the report

    All entries are checked first. `weights` identifies the network, see `identity`; if None, everything runs again.

    Raises:
        ValueError: the folder holds a result of an entry with other settings, data or weights; it is not overwritten.
    """
    finished = [_finished_result(entry, out, weights) for entry in entries]

    def run_missing() -> Iterator[Outcome]:
        outcomes = [Outcome(entry) for entry in entries]
        for i, (entry, earlier) in enumerate(zip(entries, finished, strict=True)):
            distributed.barrier()  # the main process has written and shown the last one, should this one end all
            outcomes[i] = _run(entry, run, out, weights) if earlier is None else Outcome(entry, earlier, was_done=True)
            if distributed.is_main_process():
                write_reports(outcomes, out, title)
            yield outcomes[i]

    return run_missing()


def _run(entry: Entry, run: RunEvaluation, out: Path, weights: Values | None) -> Outcome:
    folder = out / entry.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        result = run(entry.evaluation, entry.data, folder, entry.settings)
        if distributed.is_main_process():
            result.save(folder / "result.json")
    except Exception as error:
        if distributed.world_size() > 1:  # other processes may wait for this one
            raise
        if isinstance(error, ValueError | OSError):
            return Outcome(entry, error=sentence_of(error))
        # A bug rather than wrong input: the traceback is kept, and the other entries run.
        write_atomically(folder / "error.txt", traceback.format_exc())
        first_line = next(iter(str(error).splitlines()), "")
        return Outcome(entry, error=f"{type(error).__name__}: {first_line} (all of it is in {folder / 'error.txt'})")
    if distributed.is_main_process():
        write_json(folder / "entry.json", request_of(entry) | {"weights": as_json(weights)})
    return Outcome(entry, result)


def request_of(entry: Entry) -> dict[str, Any]:
    """Return what identifies an evaluation, all but its number, as it would be read from JSON."""
    return as_json({"evaluation": entry.evaluation, "data": entry.data, "settings": entry.settings})


def stored_request(path: Path) -> Any:
    """Return the request in an `entry.json`, with the defaults of newer settings, or None if the file is no JSON."""
    stored = read_json(path)
    if isinstance(stored, dict) and isinstance(stored.get("settings"), dict):
        stored["settings"] = as_json(complete_settings(str(stored.get("evaluation")), stored["settings"]))
    return stored


def _finished_result(entry: Entry, out: Path, weights: Values | None) -> Result | None:
    """Return the result that exists, or None if the entry has to run."""
    folder = out / entry.folder
    before = stored_request(folder / "entry.json")
    try:
        result = Result.load(folder / "result.json")
    except (OSError, ValueError):  # missing or cut off
        return None
    if before is None or weights is None:
        return None
    if different := differences(before, request_of(entry) | {"weights": as_json(weights)}):
        raise ValueError(
            f"{folder} holds another result ({different[0]}); name another folder with --out, or remove that one"
        )
    return result


def write_reports(outcomes: Sequence[Outcome], out: Path, title: str) -> None:
    """Write `report.html`, a page that needs no other file, and `report.md`, which links the pictures."""
    rows: list[tuple[str, str, float | None]] = []
    for outcome in outcomes:
        name = outcome.entry.folder
        if outcome.result is None:
            rows.append((name, "failed" if outcome.error else "not run yet", None))
        else:
            rows += [(name, metric, float(value)) for metric, value in outcome.result.metrics.items()]
    summary = Section("Summary", [Table(("evaluation", "metric", "value"), rows), *map(Text, _warnings(outcomes))])
    sections = [summary, *(_section(outcome, out) for outcome in outcomes)]
    write_report(out / "report.html", title, sections)
    write_atomically(out / "report.md", markdown_page(title, sections, out))


def _warnings(outcomes: Sequence[Outcome]) -> list[str]:
    """Return sentences on degenerate inputs, with the evaluations that met them."""
    found = [(outcome.entry.folder, outcome.result) for outcome in outcomes]
    return [f"{folder}: {warning}" for folder, result in found if result is not None for warning in result.warnings]


def _section(outcome: Outcome, out: Path) -> Section:
    entry, result = outcome.entry, outcome.result
    heading = f"{entry.number}. {entry.evaluation} on {entry.data}"
    if result is None:
        return Section(heading, [Text(f"Failed: {outcome.error}" if outcome.error else "Not run yet.")])
    blocks: list[Text | Table | Picture] = []
    if result.rows:
        columns = list(result.rows[0])
        blocks.append(Table(columns, [[row.get(column) for column in columns] for row in result.rows]))
    if result.metrics:
        blocks.append(Table(("metric", "value"), [(name, float(value)) for name, value in result.metrics.items()]))
    blocks += map(Text, [*result.notes, *result.warnings])
    weights = result.weights
    origins: dict[str, Values] = {
        "Settings": result.settings,
        "Weights": {} if weights is None else {"from": weights.source, "sha256": weights.sha256},
        "Versions": {**result.versions, "device": result.device},
        "Took": {unit: f"{value:.4g}" for unit, value in result.costs.items()},
    }
    blocks += [Text(f"{name}: {', '.join(f'{k} {v}' for k, v in of.items())}") for name, of in origins.items() if of]
    paths = [out / entry.folder / name for name in result.pictures]
    shown = [path for path in paths if path.suffix.lower() in MIME and path.is_file()][:MAX_PICTURES]
    blocks += [Picture(path, path.stem) for path in shown]
    if len(shown) < len(paths):
        blocks.append(Text(f"{len(shown)} of {len(paths)} pictures; all are in {entry.folder}."))
    return Section(heading, blocks)
