"""Every command of docs/reproduce.md, as a dry run on stand-ins for its data, runs and weights."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from selfpatch.cli.main import main
from selfpatch.config.recipes import load_recipe
from tests.helpers import reproduction
from tests.helpers.reproduction import PAGE, arguments_of, commands, value_of

VERDICTS = ("faithful", "differs: ", "protocol unknown: ", "weights only")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the commands name."""
    root = tmp_path_factory.mktemp("world")
    reproduction.write_data(root)
    (root / "outputs").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        for arguments, _ in map(arguments_of, commands()):
            if arguments[0] == "pretrain":
                config = reproduction.config_of(arguments)
                reproduction.write_run(config, Path(value_of(arguments, "--out")))
            elif "finetune" in arguments[:2] and "imagenet" in arguments and "semi" not in arguments:
                run = value_of(arguments, "--weights")
                tuned = Path(value_of(arguments, "--out")) / "backbone.safetensors"
                reproduction.write_tuned(reproduction.config_of(pretraining_of(run)), tuned)
        for path in {a for command in commands() for a in arguments_of(command)[0] if a.startswith("weights/")}:
            reproduction.write_released_resnet(Path(path))
    return root


def pretraining_of(run: str) -> list[str]:
    """The arguments of the command that makes a run."""
    made = (arguments for arguments, _ in map(arguments_of, commands()) if arguments[0] == "pretrain")
    return next(arguments for arguments in made if value_of(arguments, "--out") == run)


def files_below(root: Path) -> set[Path]:
    return set(root.rglob("*"))


def outside(arguments: list[str]) -> list[str]:
    """The arguments with a new output folder: that of the run exists already."""
    out = arguments.index("--out") + 1
    return [*arguments[:out], f"outputs/{arguments[out].replace('/', '-')}", *arguments[out + 1 :]]


def dry(command: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command of the page as a dry run in this process, as the first of its processes, and return the code."""
    arguments, processes = arguments_of(command)
    monkeypatch.chdir(world)
    monkeypatch.setenv("XDG_CACHE_HOME", str(world / "cache"))
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("RANK", "0")
    return main([*outside(arguments), "--dry-run"])


def kind_of(command: str) -> str:
    """What sets commands apart: method, objective and network of the recipe, or the evaluation with its method."""
    arguments, _ = arguments_of(command)
    if arguments[0] == "pretrain":
        config = load_recipe(value_of(arguments, "--recipe"))
        return " ".join(["pretrain", config.method, config.objective, config.model.split("_")[0]])
    return " ".join([*arguments[:2], *([value_of(arguments, "--method")] if "--method" in arguments else [])])


def first_of_each_kind() -> list[str]:
    return list({kind_of(command): command for command in reversed(commands())}.values())


def name_of(command: str) -> str:
    return value_of(arguments_of(command)[0], "--out").replace("/", "-")


@pytest.mark.slow
@pytest.mark.parametrize("command", commands(), ids=name_of)
def test_every_command_is_accepted(
    command: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything is checked and built, but costs are not measured."""
    for name in ("measure", "measure_batch"):
        monkeypatch.setattr(f"selfpatch.api.dry_run.{name}", no_cost)
    before = files_below(world / "outputs")
    assert dry(command, world, monkeypatch) == 0, capsys.readouterr().err
    assert "Nothing was written." in capsys.readouterr().out
    assert files_below(world / "outputs") == before == set()


def no_cost(*_: Any, **__: Any) -> Any:
    from selfpatch.core.cost import Cost

    return Cost(0, 0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("command", first_of_each_kind(), ids=name_of)
def test_costs_are_measured(
    command: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first command of each kind."""
    assert dry(command, world, monkeypatch) == 0, capsys.readouterr().err
    assert re.search(r"activations +│ +[\d.]+ [MGT]B", capsys.readouterr().out)


@pytest.mark.slow
def test_a_command_runs_under_torchrun(world: Path) -> None:
    arguments = outside(arguments_of(commands()[0])[0])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"XDG_CACHE_HOME": str(world / "cache"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, "-m", "selfpatch", *arguments, "--batch-size", "16", "--dry-run"],
        cwd=world, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("Nothing was written.") == 1, "the main process alone prints"
    assert re.search(r"processes +│ +2", done.stdout)
    assert re.search(r"images per forward pass +│ +8", done.stdout)
    assert not files_below(world / "outputs")


def rows_with_commands() -> list[list[str]]:
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|") and "`" in line]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if any(re.match(r"`(selfpatch|torchrun) ", cell) for cell in row)]


def test_every_row_has_a_verdict() -> None:
    rows = rows_with_commands()
    assert len(rows) > 80
    for row in rows:
        named = re.findall(r"`([^`]+)`", row[-1])
        known = bool(named) and all(words.startswith(VERDICTS) for words in named)
        assert known or row[-1].startswith("no published number"), row


def test_every_published_row_is_there() -> None:
    """The numbers of the papers' tables, row by row."""
    page = PAGE.read_text()
    rows = (
        "55.5 / 56.0 / 55.0", "57.4 / 57.6 / 57.3", "50.7 / 52.6 / 48.9", "49.3 / 51.2 / 47.3", "56.7 / 57.0 / 56.4",
        "53.5 / 51.2 / 55.9", "54.7 / 52.0 / 57.3", "60.7 / 59.1 / 62.4", "62.7 / 60.7 / 64.7", "38.9 / 35.5",
        "38.5 / 35.4", "40.3 / 36.4", "40.1 / 36.4", "39.8 / 37.1", "41.1 / 37.6", "40.8 / 37.3", "42.1 / 38.5",
        "35.8 / 77.6 / 45.1", "35.4 / 77.5 / 44.9", "37.2 / 78.5 / 47.1", "36.6 / 78.4 / 46.4", "37.3 / 78.4 / 46.7",
        "35.3 / 78.9 / 45.9", "39.5 / 79.9 / 50.5", "38.3 / 79.0 / 49.4", "41.2 / 80.7 / 52.1", "55.1", "57.0", "56.5",
        "47.3", "56.3", "56.4", "51.4", "54.1", "58.4", "58.9", "50.8", "61.6", "65.8", "75.6", "28.5", "27.34",
        "55.47", "43.2", "42.3", "81.5", "83.7", "50.0", "40.5", "79.7", "77.5", "98", "55.9", "41.0", "48.6", "63.0",
    )  # fmt: skip
    assert not [row for row in rows if f"| {row} |" not in page]


def test_every_run_that_is_measured_is_trained_on_the_page() -> None:
    trained = {
        value_of(arguments, "--out") for arguments, _ in map(arguments_of, commands()) if "pretrain" in arguments
    }
    measured = {
        value_of(arguments, "--weights") for arguments, _ in map(arguments_of, commands()) if "evaluate" in arguments
    }
    assert {run for run in measured if run.startswith("runs/")} <= trained


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("--weights runs/nothing", "no weights at 'runs/nothing'"),
        ("--data nowhere", "no DAVIS at nowhere"),
        ("--resolution 4", "resolution 4 is too small"),
        ("--block 99", "block is 99"),
        ("--out 1percent.txt", "cannot write to 1percent.txt"),
    ],
)
def test_a_wrong_evaluation_fails_as_it_would_for_real(
    change: str, complaint: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    said = []
    # A real evaluation reads weights before data, and those of the stand-in have no values.
    weights = "baseline:mean-colour:16" if "--data" in change else "runs/dino-vits16"
    for option in ("", " --dry-run"):
        words = f"evaluate davis --weights {weights} --data DAVIS {change}{option}".split()
        if option or change.split()[0] in ("--weights", "--data", "--out"):
            assert main(words) == 2
            said.append(capsys.readouterr().err)
    assert all(complaint in sentence for sentence in said)
    assert len(set(said)) == 1
