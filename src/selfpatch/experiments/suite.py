"""A suite: many evaluations of one network, from one file, with one report; a stopped suite continues where it was.

::

    - davis: {data: DAVIS, resolution: 240}
    - davis: {data: DAVIS}
    - knn: {data: imagenet, ks: [10, 20]}

Settings and paths are as in `selfpatch evaluate davis --data DAVIS --resolution 240`. Files in the folder::

    1-davis/result.json     the result, next to pictures and other files of the evaluation
    1-davis/entry.json      the request, written once it is finished
    report.html, report.md  all tables, written anew after each evaluation
    scorecard.*             the numbers that papers quote, next to those of other networks
    left_out.json           evaluations without a result, and why, for the scorecard
    features/               features of images, removed at the end
"""

import re
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from selfpatch.api.dry_run import DryRun
from selfpatch.api.encoder import open_network_or_baseline, without_values
from selfpatch.api.evaluate import check, measure, report
from selfpatch.api.interrupted import Interrupted
from selfpatch.checkpoints.config import LoadConfig
from selfpatch.config.schema import plain
from selfpatch.core import distributed
from selfpatch.core.atomic_io import make_folder, write_atomically
from selfpatch.core.command_line import current_command
from selfpatch.core.dry_run import dry_run
from selfpatch.core.failures import sentence_of
from selfpatch.core.lock import locked_by_main
from selfpatch.core.signals import Terminated, postponed_signals
from selfpatch.core.text import counted
from selfpatch.core.types import Encoder
from selfpatch.evaluation.cache_config import CacheConfig
from selfpatch.evaluation.feature_cache import caching_features
from selfpatch.evaluation.identity import encoder_identity
from selfpatch.evaluation.registry import complete_settings
from selfpatch.evaluation.result import Progress, Provenance, Result, silent
from selfpatch.experiments.entries import Entry, Outcome, Values, read_suite
from selfpatch.experiments.left_out import write_left_out
from selfpatch.experiments.records import as_json, differences, read_json, write_json
from selfpatch.experiments.scorecard import NetworkResults, make_scorecard, read_network
from selfpatch.experiments.scorecard_files import write_scorecard
from selfpatch.experiments.suite_report import write_reports

EVALUATIONS_FOLDER = Path("evaluations")
CACHE_FOLDER, DEFAULT_CACHE = "features", CacheConfig()
MAX_REASONS = 3
"""Number of refused evaluations that a sentence gives the reason of."""
RunEvaluation = Callable[[str, str, Path, Values], Result]
"""Runs an evaluation, given its name, data, folder and settings."""


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
    cache: CacheConfig = DEFAULT_CACHE,
    data_root: str | Path | None = None,
    limit: int | None = None,
    against: Sequence[str | Path] = (),
) -> list[Outcome]:
    """Run every evaluation of a suite on one network; a second call continues where the first was stopped.

    All evaluations are checked before the first one runs: data, settings and weights, as far as that needs no image.
    Those that are refused are told at once, and the others run.

    Args:
        suite: name of a built-in suite (`dense`, `classification`, `papers`), or a YAML file, see the module.
        weights: network or baseline, as `api.evaluate.evaluate` takes it.
        out: folder. If None, evaluations/SUITE-WEIGHTS, with the limit if there is one.
        device: device of the network.
        patch_size: side of a patch in pixels, if `weights` is a function.
        load_options: how the weights are read.
        notify: called with each outcome.
        progress: called by the evaluations with their progress.
        cache: features on disk by which the evaluations encode each image once.
        data_root: folder that relative paths of data start from; the current folder if None.
        limit: largest number of images per split of each evaluation, and of training steps, see `entries.limited`; if
            None, as the suite says.
        against: folders of suites of other networks, which the scorecard shows next to this one.

    Returns:
        The outcomes; an evaluation that fails does not stop the others, unless several processes run the suite.

    Raises:
        ValueError: the file or the weights are invalid, every evaluation is refused, or the folder holds results of
            other settings or weights.
        Interrupted: a signal stopped the suite; the scorecard shows what is done.
    """
    entries, others = read_suite(suite, data_root, limit), [read_network(folder) for folder in against]
    with distributed.process_group(device):
        encoder, record = open_network_or_baseline(weights, device, patch_size, load_options)
        if out is None:  # `runs/photos` -> `photos`, `timm:vit_small` -> `timm-vit_small`
            source = "encoder" if record is None else record.source
            name = re.sub(r"[^\w.]+", "-", Path(source).name or source).strip("-.") or "encoder"
            # A quick look has a folder of its own, so that the whole suite can follow it.
            out = EVALUATIONS_FOLDER / f"{Path(suite).stem}-{name}{'' if limit is None else f'-limit-{limit}'}"
        loading = (
            {**plain(LoadConfig()), "normed_patches": True, **(load_options or {})} if isinstance(weights, str) else {}
        )
        outcomes = []
        make_folder(out)
        with locked_by_main(out):
            try:
                for outcome in evaluate_entries(entries, encoder, record, Path(out), loading, progress, cache):
                    outcomes.append(outcome)
                    if notify is not None and distributed.is_main_process():
                        notify(outcome)
            except KeyboardInterrupt as stopped:
                with postponed_signals():  # a launcher passes on the signal that all processes get
                    page = _write_scorecard(outcomes, Path(out), others, silent)
                raise _interrupted(stopped, outcomes, len(entries), page) from None
            _write_scorecard(outcomes, Path(out), others, progress or silent)
        return sorted(outcomes, key=lambda outcome: outcome.entry.number)


def _write_scorecard(
    outcomes: Sequence[Outcome], out: Path, others: Sequence[NetworkResults], progress: Progress
) -> Path | None:
    """Write the scorecard of a suite on the main process, and return its page; None if there is no result."""
    if not distributed.is_main_process() or all(outcome.result is None for outcome in outcomes):
        return None
    return write_scorecard(make_scorecard([read_network(out), *others], progress=progress), out)


def _interrupted(stopped: KeyboardInterrupt, outcomes: Sequence[Outcome], total: int, page: Path | None) -> Interrupted:
    done = sum(outcome.result is not None for outcome in outcomes)
    shown = "" if page is None else f", which {page} shows"
    number = signal.SIGTERM if isinstance(stopped, Terminated) else signal.SIGINT
    return Interrupted(
        f"stopped after {done} of {counted(total, 'evaluation')}{shown}; go on with: {current_command()}", number
    )


def dry_run_suite(
    suite: str | Path,
    weights: str,
    out: str | Path | None = None,
    *,
    device: str = "auto",
    load_options: Values | None = None,
    data_root: str | Path | None = None,
    limit: int | None = None,
) -> Iterator[tuple[Entry, DryRun | ValueError]]:
    """Yield the report of each evaluation of a suite, or why it is refused, which does not stop the others.

    The shapes of the weights are read once. The arguments are those of `evaluate_suite`.

    Raises:
        ValueError: the file or the weights are invalid, or the folder cannot be made.
    """
    entries = read_suite(suite, data_root, limit)
    with dry_run():
        make_folder(out or EVALUATIONS_FOLDER)
        encoder, record = open_network_or_baseline(weights, device, load_options=load_options)
    for entry in entries:
        try:
            yield entry, report(entry.evaluation, encoder, record, entry.data, device=device, **entry.settings)
        except ValueError as error:
            yield entry, error


def evaluate_entries(
    entries: Sequence[Entry],
    encoder: Encoder | None,
    record: Provenance | None,
    out: Path,
    loading: Values,
    progress: Progress | None = None,
    cache: CacheConfig = DEFAULT_CACHE,
) -> Iterator[Outcome]:
    """Run the evaluations of a suite on an open network, as `run_suite` does; features are kept in a cache meanwhile.

    The encoder is None for a baseline that needs none. `record` is its source, if known, and `loading` tells how the
    weights were read, which identifies results as the weights do.
    """

    def run(name: str, data: str, folder: Path, settings: Values) -> Result:
        return measure(name, encoder, record, data, out=folder, progress=progress, **settings)

    shape = None if encoder is None else without_values(encoder)

    def check_entry(entry: Entry) -> None:
        check(entry.evaluation, shape, record, entry.data, **entry.settings)

    title = f"Evaluation of {'encoder' if record is None else record.source}"
    outcomes = run_suite(
        entries,
        run,
        out,
        weights=identity(encoder, record, loading),
        title=title,
        check_entry=check_entry,
        progress=progress if progress is not None and distributed.is_main_process() else silent,
    )
    if encoder is None or not cache.cache_gb:
        yield from outcomes
        return
    with caching_features(out / CACHE_FOLDER, encoder, int(cache.cache_gb * 10**9), keep=cache.keep_cache):
        yield from outcomes


def identity(encoder: Encoder | None, record: Provenance | None, loading: Values) -> dict[str, Any] | None:
    """Return plain values that identify a network, or None if it cannot be identified, as a function cannot."""
    if record is not None and record.sha256 is not None:
        return {"sha256": record.sha256, **loading}
    if isinstance(encoder, nn.Module):
        return {"sha256": encoder_identity(encoder), **loading}
    return None if record is None else {"source": record.source}


def run_suite(
    entries: Sequence[Entry],
    run: RunEvaluation,
    out: Path,
    *,
    weights: Values | None,
    title: str = "Evaluations",
    check_entry: Callable[[Entry], None] = lambda entry: None,
    progress: Progress = silent,
) -> Iterator[Outcome]:
    """Run the evaluations that are not finished, and yield the outcome of each entry.

        for each entry that is not finished with the same settings, data and weights:
            check it; if it is refused, this is its outcome
        for each other entry:
            if it is finished, take its result
            else run it; an error is its outcome, and the next entry follows
            write the report

    `weights` identifies the network, see `identity`; if None, everything runs again. `check_entry` raises ValueError if
    it refuses an entry, and `progress` is told of each check.

    Raises:
        ValueError: every entry is refused, or the folder holds a result of an entry with other settings, data or
            weights; it is not overwritten.
    """
    finished = [_finished_result(entry, out, weights) for entry in entries]
    # The report and `left_out.json` hold finished results from the first, should the suite be stopped again.
    pairs = list(zip(entries, finished, strict=True))
    outcomes = [Outcome(entry, earlier, was_done=earlier is not None) for entry, earlier in pairs]
    for i, (entry, earlier) in enumerate(pairs):
        if earlier is None:
            try:
                check_entry(entry)
            except (ValueError, OSError) as error:
                outcomes[i] = Outcome(entry, error=sentence_of(error), was_refused=True)
        progress("checks", i + 1, len(entries))
    refused = [outcome for outcome in outcomes if outcome.was_refused]
    if len(refused) == len(entries):
        reasons = "; ".join(f"{outcome.entry.folder}: {outcome.error}" for outcome in refused[:MAX_REASONS])
        raise ValueError(f"no evaluation can run: {reasons}{'; ...' * (len(refused) > MAX_REASONS)}")

    def run_missing() -> Iterator[Outcome]:
        yield from refused
        for i, (entry, earlier) in enumerate(pairs):
            if outcomes[i].was_refused:
                continue
            distributed.barrier()  # the main process has written and shown the last one, should this one end all
            if earlier is None:
                outcomes[i] = _run(entry, run, out, weights)
            if distributed.is_main_process():
                write_reports(outcomes, out, title)
                write_left_out(outcomes, out)
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
