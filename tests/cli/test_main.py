"""Entry point: usage, version and exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest

import selfpatch
from selfpatch.cli.main import main


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
