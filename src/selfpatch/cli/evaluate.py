"""`selfpatch evaluate`: one evaluation, a suite of them, or results side by side."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import PositiveInt

from selfpatch.cli.parsing import DryRunOptions, Flat, NetworkOptions, peek, print_report, read_options
from selfpatch.cli.progress_bar import progress_bar
from selfpatch.config.schema import DataName, Name, settings
from selfpatch.core.text import visible
from selfpatch.core.torchrun import announced_rank
from selfpatch.evaluation.cache_config import CacheConfig
from selfpatch.evaluation.config import EvaluationConfig, preset_tables
from selfpatch.evaluation.registry import EVALUATIONS

if TYPE_CHECKING:
    from selfpatch.experiments.entries import Outcome


@settings
class EvaluateOptions(DryRunOptions, NetworkOptions):
    """Network, data set and settings of one evaluation; `options_class` adds `data` and `config`."""

    out: Name | None = None
    """Folder for result.json and pictures; if not given, nothing is written."""


def options_class(config: EvaluationConfig) -> type[EvaluateOptions]:
    """Return the options of an evaluation whose settings have the defaults of `config`."""
    data = Annotated[DataName, tyro.conf.arg(help=config.data_help)]
    types = {"data": data, "config": Annotated[type(config), Flat]}
    return settings(type("Options", (EvaluateOptions,), {"__annotations__": types, "config": config}))


@settings
class SuiteOptions(DryRunOptions, NetworkOptions, CacheConfig):
    """Run every evaluation of a suite, and write one report of all.

    Data and settings of all evaluations are checked first. What is refused or fails does not keep the others from
    running; a built-in suite leaves out data sets that are missing. A stopped suite continues when called again.
    """

    suite: DataName
    """Built-in suite (dense, classification, papers), or a YAML file with one evaluation on each line: `- davis: {data:
    DAVIS, resolution: 240}`. Settings are those that `selfpatch evaluate NAME --help` lists, with underscores."""
    data_root: DataName | None = None
    """Folder that the suite's relative paths of data start from, and those of image lists that lie there; the current
    folder if not given."""
    limit: PositiveInt | None = None
    """Largest number of images per split of each evaluation (pairs of correspond and navi, sequences of davis), and of
    its training steps, for a quick look; defaults to what the suite says."""
    against: tuple[DataName, ...] = ()
    """Folders of suites of other networks, which the scorecard shows next to this one."""
    out: Name | None = None
    """Folder for report.html, scorecard.html and one folder for each evaluation; if not given,
    evaluations/SUITE-WEIGHTS."""


@settings
class CompareOptions:
    """Compare results of one evaluation: metrics, differences to the first result, and bootstrap intervals.

    Intervals are given where results hold the values of single images.
    """

    compare: tuple[DataName, ...]
    """Two or more folders or result.json files of one evaluation; with --out, also folders of suites."""
    out: Name | None = None
    """Folder for a scorecard: a page, a radar, LaTeX, Markdown, CSV and JSON."""
    allow_different: bool = False
    """Compare results of other data, settings or evaluations too."""


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name == "all":
        return _evaluate_all(arguments[1:])
    if name.partition("=")[0] == "--compare":
        return _compare(arguments)
    return _evaluate(name, arguments[1:])


def usage() -> str:
    """Return the help of `selfpatch evaluate`, with a line for each evaluation."""
    described = {**{name: EVALUATIONS[name] for name in EVALUATIONS}, "all": SuiteOptions, "compare": CompareOptions}
    about = {name: (options.__doc__ or "").partition("\n")[0] for name, options in described.items()}
    lines = "\n".join(f"  {name:<10} {about[name]}" for name in EVALUATIONS)
    return f"""selfpatch evaluate NAME --weights W --data D; `selfpatch evaluate NAME --help` lists its options,
`selfpatch evaluate NAME --presets` shows how its published protocols differ

{lines}

torchrun --nproc-per-node N -m selfpatch evaluate NAME ...
  Share the work among N processes, e.g. one for each GPU; the numbers are those of one.

selfpatch evaluate all --suite S --weights W
  {about["all"]}

selfpatch evaluate --compare A B ...
  {about["compare"]}"""


def _evaluate(name: str, arguments: list[str]) -> int:
    if name not in EVALUATIONS:
        raise ValueError(f"there is no evaluation {name!r}; use one of: {', '.join(EVALUATIONS)}, all")
    kind = EVALUATIONS[name]
    variant = () if kind.variants is None else kind.variants[:1]
    if "--presets" in arguments:
        print(preset_tables(kind, name, peek(arguments, *variant)))
        return 0
    # The preset and the variant decide the other settings and their defaults.
    chosen = peek(arguments, "preset", *variant)
    defaults = kind.from_settings({key: chosen[key] for key in chosen if hasattr(kind.variant(chosen), key)})
    command = f"evaluate {name}" + "".join(f" --{key} {chosen[key]}" for key in chosen if key != "preset")
    options = read_options(options_class(defaults), command, arguments, description=inspect.getdoc(kind))
    weights = options.named_weights() if options.config.needs_encoder else None
    from selfpatch.api.evaluate import evaluate
    from selfpatch.core.console import console

    how = {"out": options.out, **options.loading()}
    if options.dry_run:
        print_report(evaluate(name, weights, options.data, options.config, dry_run=True, **how))
        return 0
    with progress_bar(name) as progress:
        result = evaluate(name, weights, options.data, options.config, **how, progress=progress)
    if announced_rank() == 0:
        console.print(result)
        console.say("not saved; name a folder with --out" if options.out is None else f"written to {options.out}")
    return 0


def _evaluate_all(arguments: list[str]) -> int:
    options = read_options(SuiteOptions, "evaluate all", arguments)
    weights = options.named_weights()
    if options.dry_run:
        return _dry_run_all(options, weights)
    from selfpatch.core.console import console
    from selfpatch.experiments.entries import is_built_in
    from selfpatch.experiments.suite import evaluate_suite

    with progress_bar("suite") as progress:

        def notify(outcome: Outcome) -> None:
            name = f"{outcome.entry.number}. {outcome.entry.evaluation} on {outcome.entry.data}"
            state = "failed" if outcome.error else "was done before" if outcome.was_done else "done"
            console.say(f"{name}: left out, {outcome.error}" if outcome.was_refused else f"{name}: {state}")
            if outcome.result is not None:
                console.print(outcome.result)

        outcomes = evaluate_suite(
            options.suite,
            weights,
            options.out,
            **options.loading(),
            notify=notify,
            progress=progress,
            cache=CacheConfig(cache_gb=options.cache_gb, keep_cache=options.keep_cache),
            data_root=options.data_root,
            limit=options.limit,
            against=options.against,
        )
    optional = is_built_in(options.suite)
    failed = [outcome for outcome in outcomes if outcome.error is not None and not (optional and outcome.was_refused)]
    for outcome in failed:
        print(f"selfpatch: {outcome.entry.folder}: {visible(str(outcome.error))}", file=sys.stderr)
    return 2 if failed else 0


def _dry_run_all(options: SuiteOptions, weights: str) -> int:
    from selfpatch.experiments.entries import is_built_in
    from selfpatch.experiments.suite import dry_run_suite

    num_reports, refused, has_data = 0, False, False
    for entry, report in dry_run_suite(
        options.suite, weights, options.out, data_root=options.data_root, limit=options.limit, **options.loading()
    ):
        has_data |= Path(entry.data).expanduser().exists()
        if not isinstance(report, ValueError):
            num_reports += 1
            print_report(report)
        elif is_built_in(options.suite):
            print(f"{entry.folder} on {entry.data}: would be left out, {visible(str(report))}")
        else:
            refused = True
            print(f"selfpatch: {entry.folder}: {visible(str(report))}", file=sys.stderr)
    if not (num_reports or refused):
        print(f"selfpatch: no evaluation can run; {_advice(options, has_data)}", file=sys.stderr)
    return 2 if refused or not num_reports else 0


def _advice(options: SuiteOptions, has_data: bool) -> str:
    """Return what to do about a suite whose evaluations are all left out, `has_data` if the data of any exist."""
    if has_data:
        return "the lines above say why"
    if options.data_root is None:
        return "name the folder of the data with --data-root"
    return f"{visible(options.data_root)} holds none of their data, so that --data-root has to be another folder"


def _compare(arguments: list[str]) -> int:
    options = read_options(CompareOptions, "evaluate", arguments)
    from selfpatch.core.console import console

    if options.out is not None:
        from selfpatch.core.atomic_io import make_folder
        from selfpatch.experiments.scorecard import make_scorecard, read_network
        from selfpatch.experiments.scorecard_files import write_scorecard

        networks = [read_network(folder) for folder in options.compare]
        with progress_bar("scorecard") as progress:
            card = make_scorecard(networks, progress=progress)
        make_folder(options.out)
        console.say(f"written to {write_scorecard(card, Path(options.out))}")
        return 0
    for folder in options.compare:
        if Path(folder).is_dir() and not (Path(folder) / "result.json").exists():
            raise ValueError(f"{folder} holds no result.json; for the folder of a suite, name a scorecard with --out")
    from selfpatch.api.evaluate import compare

    with progress_bar("compare") as progress:
        comparison = compare(options.compare, allow_different=options.allow_different, progress=progress)
    console.print(comparison)
    return 0
