"""Suggestions for unknown words: by meaning, by spelling, and where an option exists."""

import re
import sys

import pytest

from selfpatch.cli import suggestions
from selfpatch.cli.evaluate import options_class
from selfpatch.cli.export import ExportOptions
from selfpatch.cli.main import COMMANDS, main
from selfpatch.cli.pretrain import PretrainOptions
from selfpatch.evaluation.registry import EVALUATIONS


@pytest.mark.parametrize(
    ("word", "end"),
    [
        ("--lr", "did you mean --optimizer.base-lr?"),
        ("--batch", "did you mean --batch-size?"),
        ("--arch", "did you mean --model?"),
        ("--image-size", "did you mean --crops.global-size?"),
        ("--num_workers", "did you mean --loader.workers?"),
        ("--pretrained", "did you mean --init?"),
        ("--weight-decay", "did you mean --optimizer.weight-decay?"),
        ("--bath-size", "did you mean --batch-size?"),
        ("--glbal-size", "did you mean --crops.global-size?"),
        ("--resume", "a run is continued by `selfpatch resume DIR`"),
        ("--gpus", "use torchrun --nproc-per-node N -m selfpatch pretrain ..."),
        ("photos", "write --data photos, or an option before it"),
        ("--xyzzy", "`selfpatch pretrain --help` lists the options"),
        ("-x", "`selfpatch pretrain --help` lists the options"),
    ],
)
def test_options_of_a_training(word: str, end: str) -> None:
    assert suggestions.for_option(word, PretrainOptions, "pretrain").endswith(end)


@pytest.mark.parametrize(
    ("evaluation", "word", "end"),
    [
        ("knn", "--ckpt", "did you mean --weights?"),
        ("knn", "--output", "did you mean --out?"),
        ("davis", "--image-size", "did you mean --resolution?"),
        ("knn", "--debias", "only other evaluations have it: correspond, davis, depth, discover, match, navi, segment"),
        ("knn", "--resolution", "did you mean --resize and --crop?"),
        ("finetune", "--img-size", "did you mean --resize and --crop?"),
        ("detect", "--resolution", "did you mean --short-sides and --long-side?"),
        ("segment --method linear", "--resolution", "did you mean --crop?"),
        ("segment --method fpn", "--resolution", "did you mean --crop and --short-side?"),
        ("segment", "--temperature", "it goes with --method knn"),
        ("segment", "--tau", "only other evaluations have it: discover"),
    ],
)
def test_options_of_an_evaluation(evaluation: str, word: str, end: str) -> None:
    name, _, method = evaluation.partition(" --method ")
    options = options_class(EVALUATIONS[name].from_settings({"method": method} if method else {}))
    assert suggestions.for_option(word, options, f"evaluate {evaluation}").endswith(end)


def test_a_word_where_no_data_belong() -> None:
    assert suggestions.for_option("photos", ExportOptions, "export") == "`selfpatch export --help` lists the options"


@pytest.mark.parametrize(
    ("word", "end"),
    [
        ("train", "did you mean `selfpatch pretrain`?"),
        ("extract", "did you mean `selfpatch embed`?"),
        ("davis", "did you mean `selfpatch evaluate davis`?"),
        ("resum", "did you mean `selfpatch resume`?"),
        ("xyzzy", "the commands are: pretrain, recipes, resume, evaluate"),
    ],
)
def test_commands(word: str, end: str) -> None:
    assert suggestions.for_command(word, COMMANDS).startswith(end)


def test_every_meaning_is_an_option_of_some_command() -> None:
    kinds = [
        one for config in EVALUATIONS.values() for one in (config.variants[1].values() if config.variants else [config])
    ]
    commands = [PretrainOptions, ExportOptions, *(options_class(kind.from_settings({})) for kind in kinds)]
    known = {name for kind in commands for name in suggestions.option_names(kind)}
    meant = {option for options in suggestions.MEANINGS.values() for option in re.split(r"[ +]", options)}
    assert meant <= known


@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("evaluate segment --weights x --data y --resolutoin 3", "unknown option '--resolutoin'; "),
        ("evaluate knn --weights x --data y --crop x", "--crop"),
    ],
)
def test_a_terminal_gets_the_sentence_of_a_pipe(
    command: str, sentence: str, terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert main(command.split()) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.startswith("selfpatch: ")
    assert len(said.splitlines()) == 1
    assert "\x1b" not in said
    assert "\\x1b" not in said
