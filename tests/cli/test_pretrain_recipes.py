"""Every command in the header of a recipe is one that `selfpatch pretrain` accepts, and its network can be built."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import selfpatch.api.pretrain
from selfpatch.cli.pretrain import run
from selfpatch.config.recipes import load_recipe, recipe_names
from selfpatch.config.run import FROM_INIT, RunConfig
from selfpatch.training.factory import make_student_teacher

RECIPES = Path(selfpatch.api.pretrain.__file__).parents[1] / "recipes"
ROW = re.compile(r"^#(?: .*:)? +(--.+?)\.?(?: {2,}| *$)")
"""A line with the options of a variant: a row of a list, or a sentence that ends in them."""


def commands(name: str) -> Iterator[str]:
    """Yield the arguments of a recipe's command, and of each variant that its header names."""
    lines = (RECIPES / f"{name}.yaml").read_text().splitlines()
    header = [line for line in lines if line.startswith("#")]
    command = header[1].partition("selfpatch pretrain")[2].strip().partition("  ")[0]
    yield command
    for line in header[2:]:
        if row := ROW.match(line):
            options = row[1].partition(" Not measured here")[0].rstrip(".")
            yield options if options.startswith("--recipe") else f"{command} {options}"


ALL = [(name, arguments) for name in recipe_names() for arguments in commands(name)]


def parsed(arguments: str, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    given: list[RunConfig] = []
    monkeypatch.setattr(selfpatch.api.pretrain, "pretrain", lambda config, **_: given.append(config))
    monkeypatch.setattr("selfpatch.api.first_checks.check_run", lambda config: None)  # PHOTOS and WEIGHTS do not exist
    monkeypatch.setattr(
        "selfpatch.api.first_checks.recipe_for", lambda data, recipe, composed: load_recipe(recipe or "samples")
    )
    assert run(shlex.split(arguments)) == 0
    return given[0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "arguments"), ALL, ids=[f"{name}: {arguments}" for name, arguments in ALL])
def test_it_is_accepted(name: str, arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parsed(arguments, monkeypatch)
    assert config.recipe in recipe_names()
    if config.model != FROM_INIT:
        with torch.device("meta"):
            make_student_teacher(config, with_anchor=config.teacher is None)  # WEIGHTS is no file


def test_the_variants_are_found() -> None:
    assert len(list(commands("selfpatch-dino-vitti16-coco"))) == 1 + 9
    assert len(list(commands("dino-vits16"))) == 1 + 3
    assert list(commands("densecl-resnet50"))[1].endswith("--optimizer.base-lr 0.3")
    assert load_recipe("densecl-resnet50").optimizer.base_lr == 0.03


def test_limits_of_a_recipe_can_be_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    both = load_recipe("samples")
    without_minutes, without_epochs = (
        parsed(f"--recipe samples --{name} None", monkeypatch) for name in ("minutes", "epochs")
    )
    assert (without_minutes.epochs, without_minutes.minutes) == (both.epochs, None)
    assert (without_epochs.epochs, without_epochs.minutes) == (None, both.minutes)
