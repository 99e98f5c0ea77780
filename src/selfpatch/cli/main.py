"""The command line: reads options, calls `commands`, turns errors into one sentence and exit code 2."""

from __future__ import annotations

import contextlib
import difflib
import io
import itertools
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import tyro

import selfpatch
from selfpatch.cli.options import EVALUATIONS, Bench, Compare, NetworkOptions, Study, Suite, WeightsOptions
from selfpatch.config.parsing import nested
from selfpatch.config.recipes import load_recipe
from selfpatch.config.run import SAMPLES, RunConfig
from selfpatch.evaluation import registry
from selfpatch.evaluation.config import EvaluationConfig

NAMES = sorted({*EVALUATIONS, *registry.EVALUATIONS})
USAGE = f"""selfpatch {selfpatch.__version__}: {selfpatch.__doc__}
  selfpatch pretrain [--data PHOTOS]                   train on a folder of images, or on built-in sample photographs
  selfpatch resume DIR                                 go on with a run exactly where it stopped
  selfpatch evaluate NAME --weights W --data D         measure weights by a published protocol: {", ".join(NAMES)}
  selfpatch evaluate all --suite S --weights W         every evaluation that a file lists, and one report
  selfpatch evaluate --compare A.json B.json           results side by side
  selfpatch show --weights W IMAGE...                  pictures of what the patch features see
  selfpatch export --weights W --to timm --out DIR     what timm, transformers or onnxruntime load
  selfpatch study FILE --data D                        a grid of recipes over seeds, measured and laid side by side
  selfpatch bench [loader|step|ops|davis|scaling]      how fast it is here, beside the plain way

`selfpatch COMMAND --help` lists a command's options. Weights are a run directory, a released checkpoint (DINO,
iBOT, SelfPatch, SERE, MoCo, MoBY, DINOv2 and more), a .safetensors file, or timm:NAME.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        The exit code: 0 done, 2 something about the input was wrong, 128 + n stopped by signal n.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(selfpatch.__version__)
        return 0
    command = COMMANDS.get(arguments[0])
    if command is None:
        return _complain(f"there is no command {arguments[0]!r}; the commands are: {', '.join(COMMANDS)}")
    # Threads that spin while they wait steal the cores that the loader's processes need; read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # torch and timm announce their own future; a user of this program can do nothing about it.
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        return command(arguments[1:])
    except ValueError as error:
        return _complain(str(error))
    except OSError as error:
        return _complain(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except KeyboardInterrupt:
        return _complain("interrupted", code=130)


def _complain(sentence: str, code: int = 2) -> int:
    if os.environ.get("RANK", "0") == "0":
        print(f"selfpatch: {sentence}", file=sys.stderr)
    return code


def _read(kind: Any, command: str, arguments: list[str], **how: Any) -> Any:
    """Options as a `kind`: `tyro.cli`, whose page of complaint is cut down to its first paragraph.

    Raises:
        ValueError: an option is unknown, missing or of the wrong type.
    """
    page = io.StringIO()
    try:
        with contextlib.redirect_stderr(page):
            return tyro.cli(kind, prog=f"selfpatch {command}", args=arguments, **how)
    except SystemExit as stopped:
        if not stopped.code:  # --help
            raise
        frame = " \u2500\u2502\u256d\u256e\u256f\u2570-"
        _, *lines = [line.lstrip(frame[:-1]).rstrip(frame) for line in page.getvalue().splitlines()]  # below the title
        paragraph = itertools.takewhile(bool, itertools.dropwhile(lambda line: not line.strip("-"), lines))
        sentence = re.sub(
            r"^Error parsing (\w+): (?=\w+(\[\d+\])? is |batch_size )", _section, " ".join(paragraph).rstrip(".")
        )
        raise ValueError(f"{sentence}; `selfpatch {command} --help` says what each option takes") from None


def _section(found: re.Match[str]) -> str:
    """Return the prefix of a setting's name in errors: its section, unless that is a whole record."""
    return "" if found[1][0].isupper() else f"{found[1]}."


def _pretrain(arguments: list[str]) -> int:
    chosen = _peek(arguments, "recipe", "data", "model")
    if "--help" in arguments or "-h" in arguments:
        base = load_recipe(chosen["recipe"] or SAMPLES)
    elif chosen["recipe"]:
        base = load_recipe(chosen["recipe"])
    else:
        from selfpatch.training.factory import recipe_for

        base = recipe_for(chosen["data"] or SAMPLES)
    # Settings of components have short names, which tyro does not know: it leaves them over.
    config, others = _read(
        RunConfig,
        "pretrain",
        arguments,
        description=PRETRAIN,
        default=replace(base.for_model(chosen["model"] or base.model), components={}),
        return_unknown_args=True,
    )
    config = replace(config, components=base.components).override(nested(_pairs(others)))
    from selfpatch.api.pretrain import Interrupted, pretrain

    try:
        pretrain(config)
    except Interrupted as stopped:
        return _complain(str(stopped), 128 + stopped.signal_number)
    return 0


PRETRAIN = """Pre-train a network on images without labels.

The values shown are those of the recipe. Settings of a method or objective are written by its name:
--dino.num-prototypes 1024 --selfpatch.k 2 --selfpatch.window 5, and weights of losses --loss-weights.patch 0.2.
Several processes: torchrun --nproc-per-node N -m selfpatch pretrain ..."""


def _peek(arguments: list[str], *names: str) -> dict[str, str | None]:
    """What decides the defaults of all other options, read before them."""
    found: dict[str, str | None] = dict.fromkeys(names)
    for i, argument in enumerate(arguments):
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in found:
            found[name] = value if equals else next(iter(arguments[i + 1 : i + 2]), None)
    return found


def _pairs(unknown: list[str]) -> list[tuple[str, str]]:
    """`["--selfpatch.k", "2"]` -> `[("selfpatch.k", "2")]`."""
    pairs, rest = [], list(unknown)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or "." not in name:
            if name == "--loss-weights":
                raise ValueError("--loss-weights is given by name: --loss-weights.patch 0.2, say")
            known = [f"--{field.name.replace('_', '-')}" for field in fields(RunConfig)]
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "`selfpatch pretrain --help` lists them"
            raise ValueError(f"unknown option {name!r}; {hint}")
        if not equals:
            if not rest:
                raise ValueError(f"option {name} lacks a value")
            value = rest.pop(0)
        pairs.append((name.removeprefix("--"), value))
    return pairs


@dataclass(frozen=True)
class Resume:
    """Go on with a run exactly where its newest checkpoint is."""

    run: tyro.conf.Positional[str]
    """Its directory."""
    device: str | None = None
    """Where it differs from when the run was begun."""
    workers: int | None = None
    """Where it differs from when the run was begun; the samples do not depend on it."""


def _resume(arguments: list[str]) -> int:
    options = _read(Resume, "resume", arguments)
    from selfpatch.api.pretrain import Interrupted, resume

    try:
        resume(options.run, device=options.device, workers=options.workers)
    except Interrupted as stopped:
        return _complain(str(stopped), 128 + stopped.signal_number)
    return 0


def _evaluate_command(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(
            "selfpatch evaluate NAME --weights W --data D; `selfpatch evaluate NAME --help` lists its options,\n"
            "`selfpatch evaluate NAME --presets` says how its named protocols differ\n"
        )
        docs = {n: o.__doc__ for n, o in EVALUATIONS.items()} | {
            n: o.config.__doc__ for n, o in registry.EVALUATIONS.items()
        }
        print("\n".join(f"  {name:<8} {docs[name]}" for name in sorted(docs)))
        print(f"\nselfpatch evaluate all --suite S --weights W\n  {Suite.__doc__}")
        print(f"\nselfpatch evaluate --compare A.json B.json ...\n  {Compare.__doc__}")
        return 0
    if name == "all":
        return _evaluate_all(arguments[1:])
    if name == "--compare" or name.startswith("--compare="):
        return _compare(arguments)
    if name in registry.EVALUATIONS:
        return _evaluate(name, arguments)
    if name not in EVALUATIONS:
        raise ValueError(f"there is no evaluation {name!r}; use one of: {', '.join(NAMES)}, all")
    if "--presets" in arguments:
        from selfpatch.api.evaluate import presets

        print(presets(name))
        return 0
    options = _read(EVALUATIONS[name], f"evaluate {name}", arguments[1:])
    result = options.run()
    from rich.console import Console

    Console().print(result.table())
    if options.out is not None:
        result.save(Path(options.out) / "result.json")
        print(f"written to {options.out}")
    return 0


C = TypeVar("C", bound=EvaluationConfig)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(NetworkOptions, Generic[C]):
    """A network, a data set, and the settings of an evaluation."""

    data: str
    out: str | None = None
    """Folder for result.json and pictures; if not given, nothing is written."""
    config: tyro.conf.OmitArgPrefixes[C]


def _evaluate(name: str, arguments: list[str]) -> int:
    """Run one evaluation; its settings class is the schema of its options."""
    kind = registry.EVALUATIONS[name].config
    chosen = {key: value for key, value in _peek(arguments, "preset", "method").items() if value is not None}
    config = kind.from_settings({key: value for key, value in chosen.items() if hasattr(kind.variant(chosen), key)})
    options_class: Any = EvaluateOptions[type(config)]  # type: ignore[misc]
    default = options_class(data=tyro.MISSING, config=config)
    if "--presets" in arguments:
        from selfpatch.api.evaluate import presets

        print(presets(name))
        return 0
    options = _read(options_class, f"evaluate {name}", arguments[1:], default=default, description=kind.__doc__)
    weights = options.named_weights() if options.config.needs_encoder else None
    from rich.console import Console
    from rich.progress import Progress

    from selfpatch.api.evaluate import evaluate

    with Progress(transient=True) as bar:
        task = bar.add_task(name, total=None)

        def progress(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        how = {"device": options.device, "load_options": options.load_options(), "out": options.out}
        settings = {field.name: getattr(options.config, field.name) for field in fields(options.config)}
        result = evaluate(name, weights, options.data, progress=progress, **how, **settings)
    Console().print(result.table())
    if options.out is not None:
        print(f"written to {options.out}")
    return 0


def _evaluate_all(arguments: list[str]) -> int:
    outcomes = _read(Suite, "evaluate all", arguments).run()
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    for outcome in failed:
        _complain(f"{outcome.entry.folder}: {outcome.error}")
    return 2 if failed else 0


def _compare(arguments: list[str]) -> int:
    comparison = _read(Compare, "evaluate", arguments).run()
    from rich.console import Console

    Console().print(comparison.table())
    return 0


@dataclass(frozen=True, kw_only=True)
class Show(NetworkOptions):
    """Draw each image's patch features, and for some patches what they resemble and which positives are picked."""

    images: tyro.conf.Positional[tuple[str, ...]]
    out: str = "pictures"
    """Folder for the pictures."""
    resolution: int = 480
    """Short side in pixels, rounded to a multiple of the patch."""
    k: int = 4
    """Positives of a patch."""
    window: str = "3"
    """Side of the neighbourhood in patches, or `all`."""
    border: Literal["wrap", "clip"] = "wrap"


def _show(arguments: list[str]) -> int:
    options = _read(Show, "show", arguments)
    if not options.images:
        raise ValueError("no image was named; give one or more files")
    window: Any = "all" if options.window == "all" else _whole_number("window", options.window)
    weights = options.named_weights()
    from selfpatch.api.evaluate import load
    from selfpatch.api.show import show

    encoder = load(weights, device=options.device, **options.load_options())
    drawing = {"resolution": options.resolution, "k": options.k, "window": window, "border": options.border}
    print("\n".join(str(path) for path in show(encoder, options.images, options.out, **drawing)))
    return 0


@dataclass(frozen=True, kw_only=True)
class Export(WeightsOptions):
    """Write a network as timm, transformers (hf) or onnxruntime load it, or as one file of ours; features are compared
    there."""

    to: Literal["timm", "safetensors", "hf", "onnx"]
    out: str
    """Folder, new or empty."""
    size: int | None = None
    """Side of the images in pixels, for onnx; None: any size (a Swin: that of its windows)."""


def _export(arguments: list[str]) -> int:
    options = _read(Export, "export", arguments)
    weights = options.named_weights()
    from selfpatch.api.export import export

    *files, readme = export(weights, options.to, options.out, size=options.size, **options.load_options())
    print("\n".join(str(path) for path in [*files, readme]))
    print(readme.read_text(), end="")
    return 0


def _study(arguments: list[str]) -> int:
    failures = _read(Study, "study", arguments).run(shlex.join(["selfpatch", "study", *arguments]))
    return 2 if failures else 0


def _bench(arguments: list[str]) -> int:
    _read(Bench, "bench", arguments).run()
    return 0


def _whole_number(name: str, text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"{name} is {text!r}; a whole number is needed")
    return int(text)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "pretrain": _pretrain,
    "resume": _resume,
    "evaluate": _evaluate_command,
    "show": _show,
    "export": _export,
    "study": _study,
    "bench": _bench,
}
