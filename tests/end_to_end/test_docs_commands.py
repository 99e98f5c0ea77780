"""Every command of the documentation is one that the command line takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn

import pytest

from selfpatch.cli.main import main
from selfpatch.config.recipes import choose_recipe, load_recipe
from selfpatch.config.run import RunConfig
from selfpatch.config.schema import override
from selfpatch.methods.registry import METHODS, OBJECTIVES
from tests.helpers.docs_commands import PAGES, REPOSITORY, commands_of, concrete
from tests.helpers.reproduction import arguments_of

WORK = (
    "selfpatch.api.pretrain.pretrain",
    "selfpatch.api.pretrain.resume",
    "selfpatch.api.evaluate.evaluate",
    "selfpatch.api.evaluate.compare",
    "selfpatch.api.show.show",
    "selfpatch.api.embed.embed",
    "selfpatch.api.explore.explore",
    "selfpatch.api.export.export",
    "selfpatch.api.prepare.prepare",
    "selfpatch.experiments.suite.evaluate_suite",
    "selfpatch.experiments.scorecard.read_network",
    "selfpatch.experiments.run.run_study",
    "selfpatch.cli.launch.submit",
    "benchmarks.run.run_benchmarks",
)
"""Functions that the commands call once they have read their options."""


INCOMPLETE = r"selfpatch: (Missing from|no image was named|there is no command to launch|/runs/photos is no run)"
"""Complaint about a command of which prose names the beginning alone, e.g. `selfpatch evaluate finetune`."""


class Accepted(BaseException):
    """End of a command that has read its options."""


def accept(*arguments: Any, **_: Any) -> NoReturn:
    """Check the settings of methods and objectives, which the command line leaves to them."""
    if arguments and isinstance(config := arguments[0], RunConfig):
        for name in config.used:
            override(({**METHODS, **OBJECTIVES})[name].Config(), config.components.get(name, {}), name)
    raise Accepted


@pytest.fixture
def only_parsing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for function in WORK:
        monkeypatch.setattr(function, accept)
    monkeypatch.setattr(
        "selfpatch.api.first_checks.recipe_for",
        lambda data, recipe, composed: load_recipe(recipe or choose_recipe(1000, "photos", composed=composed)),
    )
    monkeypatch.setattr("selfpatch.api.first_checks.check_run", lambda config: None)
    monkeypatch.setattr("selfpatch.cli.parsing.require_weights", lambda weights: None)
    monkeypatch.setattr("selfpatch.cli.bench._find_benchmarks", lambda: None)
    monkeypatch.syspath_prepend(REPOSITORY)
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("extends: small-pairs\nepochs: 50\n")


def complaint(command: str, capsys: pytest.CaptureFixture[str]) -> str | None:
    """Return what the command line says against a command, or None if it takes it or lacks only further options."""
    arguments, _ = arguments_of(concrete(command))
    try:
        code = main(arguments)
    except (Accepted, SystemExit) as end:  # tyro exits after --help
        code = getattr(end, "code", None) or 0
    said = capsys.readouterr().err
    return f"{command}: {said}" if code and not re.match(INCOMPLETE, said) else None


@pytest.mark.slow
@pytest.mark.usefixtures("only_parsing")
def test_every_command_parses(capsys: pytest.CaptureFixture[str]) -> None:
    commands = {command for page in PAGES if page.name != "reproduce.md" for command in commands_of(page)}
    assert len(commands) > 150
    assert [wrong for command in sorted(commands) if (wrong := complaint(command, capsys))] == []


@pytest.mark.usefixtures("only_parsing")
@pytest.mark.parametrize("command", ["selfpatch pretrain --lr 1", "selfpatch evaluate nothing", "selfpatch show --k x"])
def test_a_wrong_command_would_be_found(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert complaint(command, capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "options", "files"),
    [
        ("selfpatch show --weights W IMAGE...", "--resolution 32 --out seen", ("seen/*.png",)),
        ("selfpatch explore --weights W [--weights W2] IMAGE...", "--resolution 32", ("explore.html",)),
        ("selfpatch embed --weights W --data PHOTOS --out photos.safetensors", "--resolution 32 --workers 0 --limit 4",
         ("photos.safetensors",)),
        ("selfpatch evaluate match --weights W --data PHOTOS", "--resolution 32 --limit 4 --out m", ("m/result.json",)),
    ],
)  # fmt: skip
def test_commands_of_the_task_page_do_what_they_say(
    command: str, options: str, files: tuple[str, ...], data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On real data, with options that make the work small, and pixels in place of a network."""
    assert command in commands_of(REPOSITORY / "docs" / "tasks.md")
    monkeypatch.chdir(tmp_path)
    photos = data_dir / "tiny_imagenet" / "val"
    image = next(photos.rglob("*.JPEG"))
    words = {"W": "baseline:raw-patch:8", "W2": "baseline:mean-colour:8", "IMAGE": str(image), "PHOTOS": str(photos)}
    arguments = [words.get(word, word) for word in arguments_of(concrete(command))[0]]
    assert main([*arguments, *options.split()]) == 0
    assert all(list(tmp_path.glob(pattern)) for pattern in files)


def test_files_of_the_repository_that_commands_name_exist() -> None:
    named = {
        file
        for page in PAGES
        for command in commands_of(page)
        for file in re.findall(r"\b((?:studies|suites|examples|tests)/\w+\.\w+)", command)
    }
    assert len(named) > 5
    assert [file for file in sorted(named) if not (REPOSITORY / file).is_file()] == []
