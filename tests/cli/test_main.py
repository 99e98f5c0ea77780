"""Entry point: usage, version and exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import selfpatch
from selfpatch.cli import evaluate
from selfpatch.cli import main as cli_main
from selfpatch.cli.main import ONE_PROCESS, main
from selfpatch.core.failures import FailedElsewhere, FailedHere
from selfpatch.core.signals import Terminated
from selfpatch.data.sources.index import ImageIndex
from selfpatch.data.workers import LoaderError
from tests.helpers.command_line import write_photos


def test_no_command_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "selfpatch pretrain" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{selfpatch.__version__}\n"
    assert main(["--version", "--verbose"]) == 0
    names = [line.partition("  ")[0].strip() for line in capsys.readouterr().out.splitlines()]
    assert names[:6] == ["python", "selfpatch", "torch", "torchvision", "timm", "device"]


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

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(cli_main, "_fails_first", lambda: False)
    monkeypatch.setattr("selfpatch.cli.evaluate.run", fail)
    assert main(["evaluate", "knn"]) == 2
    assert capsys.readouterr().err == said


def test_a_killed_process_of_a_group_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str]) -> int:
        raise RuntimeError("[gloo/pair.cc:545] Read error: Connection reset by peer")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("selfpatch.cli.evaluate.run", fail)
    assert main(["evaluate", "knn"]) == 2
    assert capsys.readouterr().err.startswith("selfpatch: another process of the group has ended or was killed")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_command_of_one_process_is_refused_once(
    rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", str(rank))
    for command in ONE_PROCESS:
        assert main([command]) == 2
        said = f"selfpatch: `selfpatch {command}` runs in one process; call it without torchrun\n"
        assert capsys.readouterr().err == (said if rank == 0 else "")


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: list[str]) -> int:
        raise error

    monkeypatch.setattr("selfpatch.cli.evaluate.run", fail)


def test_an_unexpected_error_is_a_sentence_and_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fail_with(KeyError("a\nb"), monkeypatch)
    assert main(["evaluate", "knn", "--data", "my photos"]) == 1
    (log,) = (tmp_path / "selfpatch" / "errors").iterdir()
    assert capsys.readouterr().err == (
        f"selfpatch: evaluate failed unexpectedly (KeyError: 'a\\nb'); the traceback is in {log}; "
        "please report it at https://github.com/selfpatch/selfpatch/issues\n"
    )
    text = log.read_text()
    assert text.startswith("selfpatch evaluate knn --data 'my photos'\nselfpatch ")
    assert "Traceback (most recent call last)" in text


def test_a_warning_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def warn(arguments: list[str]) -> int:
        line = warnings.formatwarning("a\x1b[31m.pt cannot be read", UserWarning, "read.py", 1)
        return int(line != "selfpatch: warning: a\\x1b[31m.pt cannot be read\n")

    monkeypatch.setattr("selfpatch.cli.evaluate.run", warn)
    before = warnings.formatwarning
    assert main(["evaluate"]) == 0
    assert warnings.formatwarning is before


def test_without_a_folder_for_the_log_the_traceback_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("selfpatch.cli.failure_log._folders", lambda: [Path("/dev/null")])
    fail_with(RuntimeError(), monkeypatch)
    assert main(["evaluate"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "(RuntimeError: ); the traceback is above; please report it" in error


@pytest.mark.parametrize(("words", "variable"), [(["--debug", "evaluate"], ""), (["evaluate"], "1")])
@pytest.mark.parametrize(("error", "code"), [(ValueError("no data"), 2), (KeyError("a bug"), 1)])
def test_debug_shows_the_traceback_too(
    words: list[str], variable: str, error: Exception, code: int, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("SELFPATCH_DEBUG", variable)
    fail_with(error, monkeypatch)
    assert main(words) == code
    *traceback, sentence = capsys.readouterr().err.splitlines()
    assert any(line.startswith("Traceback") for line in traceback)
    assert sentence.startswith("selfpatch: ")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (Terminated(), 143, "ended by SIGTERM"),
        (LoaderError("no shared memory"), 2, "no shared memory"),
        (ValueError("two\nlines \x1b[31m caf\udce9"), 2, "two\\nlines \\x1b[31m caf\\xe9"),
        (RuntimeError("Could not determine home directory."), 2, "a path begins with `~`"),
        (MemoryError(), 2, "there is not enough memory; use a smaller batch size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 2, "there is not enough memory; use"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), 2, "there is not enough memory; use"),
    ],
)
def test_what_ends_a_command_is_one_line(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fail_with(error, monkeypatch)
    assert main(["evaluate"]) == code
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"selfpatch: {said}")


def test_a_sigterm_that_is_passed_on_does_not_keep_a_command_from_saying_how_it_ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    complain = cli_main._complain

    def terminate(*arguments: object, **options: object) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return complain(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(cli_main, "_complain", terminate)
    monkeypatch.setattr(evaluate, "run", terminate)
    assert main(["evaluate"]) == 143
    assert capsys.readouterr().err == "selfpatch: ended by SIGTERM\n"
    fail_with(ValueError("no data"), monkeypatch)
    assert main(["evaluate"]) == 143, "the first one comes while an error is told"


def test_a_user_without_a_home_is_none_the_worse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As in a container that runs as another user, without an entry in /etc/passwd."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert main(["pretrain", "--data", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"selfpatch: no images in {tmp_path}")
    write_photos(tmp_path / "photos", 3)
    assert len(ImageIndex.open(tmp_path / "photos")) == 3
    monkeypatch.setenv("HOME", "/proc/nowhere")
    assert len(ImageIndex.open(tmp_path / "photos")) == 3
