"""Suggestions for words of a command line that no option or command has, by meaning and by spelling."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from selfpatch.config.schema import close_match
from selfpatch.evaluation.config import EvaluationConfig
from selfpatch.evaluation.registry import EVALUATIONS

OTHER_COMMANDS = {
    "train": "pretrain",
    "fit": "pretrain",
    "finetune": "evaluate finetune",
    "eval": "evaluate",
    "test": "evaluate",
    "visualize": "show",
    "plot": "show",
    "encode": "embed",
    "extract": "embed",
    "features": "embed",
    "predict": "embed",
    "browse": "explore",
    "convert": "export",
    "continue": "resume",
    "benchmark": "bench",
    **{name: f"evaluate {name}" for name in EVALUATIONS},
}
"""Command of ours, by the name that other tools or a quick guess give it."""

MEANINGS = {
    "arch architecture network encoder": "model",
    "batch bs batch-size-per-gpu per-gpu-batch-size": "batch-size",
    "checkpoint ckpt pretrained pretrained-weights model backbone": "weights",
    "data-dir data-path dataset images input root train-data": "data",
    "crop-size": "crops.global-size resolution crop",
    "image-size img-size imgsz input-size resolution size": (
        "crops.global-size resolution resize+crop crop+short-side crop short-sides+long-side size"
    ),
    "iterations max-steps num-steps": "steps epochs",
    "learning-rate lr": "optimizer.base-lr lr",
    "local-crops local-crops-number num-crops num-local-crops": "crops.num-local",
    "max-epochs n-epochs num-epochs": "epochs",
    "max-images max-samples num-images subset": "limit",
    "num-workers workers": "loader.workers workers",
    "output output-dir output-path save-dir": "out",
    "amp bf16 dtype fp16 half mixed-precision": "precision",
    "patch": "patch-size",
    "pretrained-weights checkpoint ckpt pretrained weights": "init",
    "wd": "optimizer.weight-decay weight-decay",
}
"""Options of ours, the first of which a command has, by what other tools call them; `+` joins two that go together."""

_PROCESSES = ("gpus", "num-gpus", "ngpus", "devices", "nproc", "nproc-per-node", "world-size", "nodes")


def for_command(word: str, commands: Sequence[str]) -> str:
    """Return the end of a sentence on a word that is no command: the one meant, or all of them."""
    meant = OTHER_COMMANDS.get(word) or close_match(word, commands)
    return f"did you mean `selfpatch {meant}`?" if meant else f"the commands are: {', '.join(commands)}"


def for_option(word: str, kind: type, command: str) -> str:
    """Return the end of a sentence on a word that is no option of a command: the option meant, or where all are listed.

    Args:
        word: the word, e.g. `--lr`.
        kind: dataclass of the command's options.
        command: name of the command, e.g. `evaluate knn`.
    """
    known = list(option_names(kind))
    listed = f"`selfpatch {command} --help` lists the options"
    if not word.startswith("-"):
        return f"write --data {word}, or an option before it" if "data" in known else listed
    name = word.lstrip("-").replace("_", "-")
    if name in _PROCESSES:
        return f"for several processes, use torchrun --nproc-per-node N -m selfpatch {command} ..."
    if command == "pretrain" and name == "resume":
        return "a run is continued by `selfpatch resume DIR`"
    meant = _by_last_word(name, known) or _by_meaning(name, known) or _by_spelling(name, known)
    if meant:
        return f"did you mean {meant}?"
    return _where_else(name, command) or listed


def _where_else(name: str, command: str) -> str | None:
    """Return which methods of an evaluation, or else which evaluations, have an option that is unknown here."""
    program, _, rest = command.partition(" ")
    if program != "evaluate" or rest.split(" ")[0] not in EVALUATIONS:
        return None
    config = EVALUATIONS[rest.split(" ")[0]]
    if config.variants is not None:
        setting, kinds = config.variants
        if having := [value for value, kind in kinds.items() if name in option_names(kind)]:
            return f"it goes with --{setting} {' or '.join(having)}"
    having = [other for other, config in EVALUATIONS.items() if any(name in option_names(c) for c in _kinds(config))]
    return f"only other evaluations have it: {', '.join(having)}" if having else None


def _kinds(config: type[EvaluationConfig]) -> Sequence[type]:
    return (config,) if config.variants is None else tuple(config.variants[1].values())


def option_names(kind: type, prefix: str = "") -> Iterator[str]:
    """Yield the names of the options that a dataclass of settings has on the command line, without dashes."""
    for field in fields(kind):
        hint = get_type_hints(kind, include_extras=True)[field.name]
        section, is_flat = _section(hint)
        name = f"{prefix}{field.name.replace('_', '-')}"
        if section is None:
            yield name
        else:
            yield from option_names(section, prefix if is_flat else f"{name}.")


def _section(hint: Any) -> tuple[type | None, bool]:
    """Return the dataclass of an annotation, if any, and whether its options stand without its name."""
    annotated = get_origin(hint) is Annotated
    inner = get_args(hint)[0] if annotated else hint
    is_flat = annotated and any(getattr(data, "name", None) == "" for data in get_args(hint)[1:])
    return (inner if isinstance(inner, type) and is_dataclass(inner) else None), is_flat


def _by_last_word(name: str, known: Sequence[str]) -> str | None:
    """Return the option of the one section that has a setting of this name: `base-lr` -> `--optimizer.base-lr`."""
    found = [option for option in known if option.rpartition(".")[2] == name]
    return f"--{found[0]}" if len(found) == 1 else None


def _by_meaning(name: str, known: Sequence[str]) -> str | None:
    meant = (option for names, options in MEANINGS.items() if name in names.split() for option in options.split())
    ours = (option.split("+") for option in meant)
    return next((" and ".join(f"--{one}" for one in parts) for parts in ours if set(parts) <= set(known)), None)


def _by_spelling(name: str, known: Sequence[str]) -> str | None:
    last_words = {option.rpartition(".")[2]: option for option in reversed(known)}
    close = difflib.get_close_matches(name, [*known, *last_words], n=1, cutoff=0.7)
    return f"--{last_words.get(close[0], close[0])}" if close else None
