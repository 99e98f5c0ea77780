"""Many evaluations of one network, from one file, with one report; a suite that was stopped goes on where it was.

::

    - davis: {data: DAVIS, resolution: 240}
    - davis: {data: DAVIS}
    - knn: {data: imagenet, ks: [10, 20]}

Settings and paths are those of the command line: `selfpatch evaluate davis --data DAVIS --resolution 240`. In the
folder of the suite::

    1-davis/result.json     and what else the evaluation writes
    1-davis/entry.json      what was asked, written once it is done
    report.html, report.md  all tables, written anew after each evaluation
"""

from __future__ import annotations

import json
import re
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from torch import Tensor, nn

from selfpatch.api.encoder import open_network_or_baseline
from selfpatch.api.evaluate import measure
from selfpatch.checkpoints.config import LoadConfig
from selfpatch.cli.options import EVALUATIONS
from selfpatch.cli.options.weights import EvaluationOptions
from selfpatch.config.schema import checked, plain
from selfpatch.core.atomic_io import write_atomically
from selfpatch.core.types import Encoder
from selfpatch.evaluation import registry
from selfpatch.evaluation.result import Progress, Provenance, Result, network_sha256
from selfpatch.experiments.suite_report import Entry, Outcome, write_reports

EXAMPLE = "`- davis: {data: DAVIS, resolution: 240}`"
Run = Callable[[str, str, Path, Mapping[str, Any]], Result]
"""Runs an evaluation: (its name, data, folder to write to, settings)."""


def evaluate_suite(
    suite: str | Path,
    weights: str | Encoder | Callable[[Tensor], Any],
    out: str | Path | None = None,
    *,
    device: str = "auto",
    patch_size: int | None = None,
    load_options: Mapping[str, Any] | None = None,
    tell: Callable[[Outcome], None] | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Runs every evaluation that a file lists on one network; called again, it goes on where it was stopped.

    Args:
        suite: the file, see above.
        weights, device, patch_size, load_options: as `api.evaluate` takes them.
        out: folder; None: evaluations/SUITE-WEIGHTS.
        tell: called with each outcome when it is known.
        progress: called as an evaluation calls it.

    Returns:
        The outcomes; an evaluation that failed does not keep the others from running.

    Raises:
        ValueError: the file or the weights are not as they should be, or the folder holds results of others; found
            before the first evaluation runs.
    """
    entries = read_suite(suite)
    encoder, record = open_network_or_baseline(weights, device, patch_size, load_options)
    if out is None:
        source = "encoder" if record is None else record.source
        out = Path("evaluations") / f"{Path(suite).stem}-{_file_name(source)}"
    reading = (
        {**plain(LoadConfig()), "normed_patches": True, **(load_options or {})} if isinstance(weights, str) else {}
    )
    return evaluate_entries(entries, encoder, record, Path(out), reading, tell=tell, progress=progress)


def evaluate_entries(
    entries: Sequence[Entry],
    encoder: Encoder | None,
    record: Provenance | None,
    out: Path,
    reading: Mapping[str, Any],
    *,
    tell: Callable[[Outcome], None] | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """`evaluate_suite` of a network that is open.

    Args:
        entries: as `read_suite` gives them.
        encoder, record: as `api.open_encoder` gives them.
        out: folder of the suite.
        reading: how the weights were read, which tells results apart as the weights do.
    """

    def run(name: str, data: str, folder: Path, settings: Mapping[str, Any]) -> Result:
        return measure(name, encoder, record, data, out=folder, progress=progress, **settings)

    title = f"Evaluation of {'encoder' if record is None else record.source}"
    outcomes = []
    for outcome in run_suite(entries, run, out, weights=identity(encoder, record, reading), title=title):
        outcomes.append(outcome)
        if tell is not None:
            tell(outcome)
    return outcomes


def _file_name(source: str) -> str:
    """`runs/photos` -> `photos`, `timm:vit_small` -> `timm-vit_small`."""
    return re.sub(r"[^\w.]+", "-", Path(source).name or source).strip("-.") or "encoder"


def read_suite(path: str | Path) -> list[Entry]:
    """The evaluations that a suite file lists, with every name and every type of a value checked.

    Raises:
        ValueError: there is no such file, it is no list of evaluations, or one of them or of its settings is unknown.
    """
    try:
        listed = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read the suite {path} ({error.strerror}); give a YAML file like {EXAMPLE}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"{path} holds no list of evaluations; write one a line, like {EXAMPLE}")
    return [read_entry(number, item, f"entry {number} of {path}") for number, item in enumerate(listed, start=1)]


def read_entry(number: int, item: Any, where: str) -> Entry:
    """One evaluation with its settings, `{davis: {data: DAVIS}}`, every name and every type of a value checked.

    Raises:
        ValueError: it is none; the sentence begins with `where`.
    """
    if not (isinstance(item, dict) and len(item) == 1 and all(isinstance(v, dict) for v in item.values())):
        raise ValueError(f"{where} is {item!r}; one evaluation with its settings is needed, like {EXAMPLE}")
    ((name, given),) = item.items()
    if name in registry.EVALUATIONS and isinstance(given.get("data"), str):
        values = {key: value for key, value in given.items() if key != "data"}
        config = registry.EVALUATIONS[name].config.from_settings(values, f"{where}: {name}")
        return Entry(number, name, given["data"], plain(config))
    if name not in EVALUATIONS and name not in registry.EVALUATIONS:
        known = ", ".join(sorted({*EVALUATIONS, *registry.EVALUATIONS}))
        raise ValueError(f"{where}: there is no evaluation {name!r}; use one of: {known}")
    if not isinstance(given.get("data"), str):
        raise ValueError(f"{where}: {name} needs data, the path of its data set, like {EXAMPLE}")
    options = EVALUATIONS[name]
    accepted, kinds = _settings(options(data="")), get_type_hints(options)
    for key in given:
        if key != "data" and key not in accepted:
            raise ValueError(f"{where}: {name} has no setting {key!r}; it has: {', '.join(accepted)}")
    values = {key: checked(value, kinds[key], f"{where}: {name}.{key}") for key, value in given.items()}
    return Entry(number, name, given["data"], _settings(options(**values)))


def _settings(options: EvaluationOptions) -> dict[str, Any]:
    """All that the evaluation is given but for its folder, which is the suite's to choose."""
    return {name: value for name, value in options.settings().items() if name != "out"}


def identity(
    encoder: Encoder | None, record: Provenance | None, load_options: Mapping[str, Any]
) -> dict[str, Any] | None:
    """What tells one network from another, in plain values; None where nothing does, as for a function."""
    if record is not None and record.sha256 is not None:
        return {"sha256": record.sha256, **load_options}
    if isinstance(encoder, nn.Module):
        return {"sha256": network_sha256(encoder), **load_options}
    return None if record is None else {"source": record.source}


def run_suite(
    entries: Sequence[Entry],
    run: Run,
    out: Path,
    *,
    weights: Mapping[str, Any] | None,
    title: str = "Evaluations",
) -> Iterator[Outcome]:
    """Runs what is yet to be run, and gives the outcome of each entry when it is known::

        for each entry:
            it was done with the same settings, data and weights -> its result, as it was
            else run it; what it raises is its outcome, and the next one follows
            write the report

    Nothing is run before all entries have been looked at.

    Args:
        entries: as `read_suite` gives them.
        run: runs one.
        out: folder of the suite.
        weights: the network, as `identity` gives it; None: it cannot be told from others, so that all are run again.
        title: of the report.

    Raises:
        ValueError: the folder holds a result of an entry with other settings, data or weights; none is overwritten.
    """
    done = [_done(entry, out, weights) for entry in entries]
    return _outcomes(entries, done, run, out, weights, title)


def _outcomes(
    entries: Sequence[Entry],
    done: Sequence[Result | None],
    run: Run,
    out: Path,
    weights: Mapping[str, Any] | None,
    title: str,
) -> Iterator[Outcome]:
    outcomes = [Outcome(entry) for entry in entries]
    for place, (entry, earlier) in enumerate(zip(entries, done, strict=True)):
        if earlier is not None:
            outcomes[place] = Outcome(entry, earlier, was_done=True)
        else:
            outcomes[place] = _run(entry, run, out, weights)
        write_reports(outcomes, out, title)
        yield outcomes[place]


def _run(entry: Entry, run: Run, out: Path, weights: Mapping[str, Any] | None) -> Outcome:
    folder = out / entry.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        result = run(entry.evaluation, entry.data, folder, entry.settings)
        result.save(folder / "result.json")
    except ValueError as error:
        return Outcome(entry, error=str(error))
    except OSError as error:
        return Outcome(entry, error=f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except Exception as error:  # no mistake of the user's: what it was is kept, and the others go on
        write_atomically(folder / "error.txt", traceback.format_exc())
        first_line = next(iter(str(error).splitlines()), "")
        return Outcome(entry, error=f"{type(error).__name__}: {first_line} (all of it is in {folder / 'error.txt'})")
    write_atomically(folder / "entry.json", json.dumps(_asked(entry, weights), indent=1) + "\n")
    return Outcome(entry, result)


def asked_of(entry: Entry) -> dict[str, Any]:
    """All that is asked of an evaluation but its number, as JSON gives it back."""
    return as_json({"evaluation": entry.evaluation, "data": entry.data, "settings": entry.settings})


def as_json(value: Any) -> Any:
    """A value as JSON gives it back, so that it can be compared with what was read."""
    return json.loads(json.dumps(value, default=str))


def _asked(entry: Entry, weights: Mapping[str, Any] | None) -> dict[str, Any]:
    return asked_of(entry) | {"weights": as_json(weights)}


def _done(entry: Entry, out: Path, weights: Mapping[str, Any] | None) -> Result | None:
    """The result that is there already; None: the entry is yet to be run."""
    folder = out / entry.folder
    try:
        before = json.loads((folder / "entry.json").read_text(encoding="utf-8"))
        result = Result.load(folder / "result.json")
    except (OSError, ValueError):  # absent, or cut
        return None
    if weights is None:
        return None
    different = differences(before, _asked(entry, weights))
    if different:
        raise ValueError(
            f"{folder} holds another result ({different[0]}); name another folder with --out, or remove that one"
        )
    return result


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """What two nested plain values do not have in common."""
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*now, *before])
        return [d for key in keys for d in differences(before.get(key), now.get(key), f"{name}.{key}".lstrip("."))]
    return [] if before == now else [f"{name.removeprefix('settings.')} is {before} there and {now} now"]
