"""Scripts that complete command lines, in a shell that runs them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from selfpatch.cli.main import COMMANDS, main

COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); _tyro_selfpatch; printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    capture = pytest.MonkeyPatch()
    file = tmp_path_factory.mktemp("completion") / "selfpatch.bash"
    with capture.context() as patch, file.open("w") as stream:
        patch.setattr("sys.stdout", stream)
        assert main(["completion", "bash"]) == 0
    return file


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("pre", {"pretrain", "prepare"}),
        ("evaluate kn", {"knn"}),
        ("pretrain --recipe small-se", {"small-sere-ibot", "small-selfpatch-moby-swin"}),
        ("pretrain --optimizer.base", {"--optimizer.base-lr"}),
        ("pretrain --method dens", {"densecl"}),
        ("evaluate segment --method up", {"upernet"}),
        ("resume runs/ph", {""}),  # which bash then completes as a path
    ],
)
def test_bash_completes(words: str, completions: set[str], script: Path) -> None:
    said = subprocess.run(
        ["bash", "-c", COMPLETE, "bash", str(script), "selfpatch", *words.split()],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert set(said.stdout.splitlines()) == completions, said.stderr


@pytest.mark.slow
def test_paths_are_left_to_the_shell(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "complete -o default -F _tyro_selfpatch selfpatch\n" in script.read_text()
    assert main(["completion", "zsh"]) == 0
    zsh = capsys.readouterr().out
    assert zsh.startswith("#compdef selfpatch\n")
    assert 'if [[ -z "$completions" || "$completions" == __TYRO_* ]]; then\n    _files\n' in zsh


@pytest.mark.parametrize("shell", ["tcsh", "fish"])
def test_other_shells_are_refused(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "bash" in said.err
    assert len(said.err.splitlines()) == 1


def test_every_command_is_completed(script: Path) -> None:
    text = script.read_text()
    assert all(f'"{command}"' in text or f"'{command}'" in text for command in {*COMMANDS} - {"bench", "completion"})
