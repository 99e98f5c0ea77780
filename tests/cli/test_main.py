"""Entry point: usage, version and exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest

import selfpatch
from selfpatch.cli.main import main
from selfpatch.core.failures import FailedElsewhere, FailedHere


def test_no_command_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "selfpatch pretrain" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{selfpatch.__version__}\n"


def test_the_program_ends_with_the_exit_code() -> None:
    done = subprocess.run([sys.executable, "-m", "selfpatch", "pretend"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("selfpatch: there is no command 'pretend'")


@pytest.mark.parametrize(
    ("command", "missing"), [("study", "FILE, --data STR"), ("resume", "DIR"), ("evaluate all", "--suite STR")]
)
def test_what_is_missing_is_named(command: str, missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 2
    error = capsys.readouterr().err
    assert (
        error
        == f"selfpatch: Missing from selfpatch {command}: {missing}; `selfpatch {command} --help` lists the options\n"
    )


@pytest.mark.parametrize(
    ("rank", "error", "said"),
    [
        (0, ValueError("no data"), "selfpatch: no data\n"),
        (1, ValueError("no data"), ""),
        (1, FailedHere("no data"), "selfpatch: no data\n"),
        (0, FailedElsewhere(), ""),
        (0, OSError(2, "No such file", "a.png"), "selfpatch: No such file: a.png\n"),
    ],
)
def test_one_process_of_a_group_says_why_all_end(
    rank: int, error: Exception, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr("selfpatch.cli.evaluate.run", fail)
    assert main(["evaluate", "knn"]) == 2
    assert capsys.readouterr().err == said
