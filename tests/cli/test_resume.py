"""`selfpatch resume` of a finished run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from selfpatch.cli.main import main
from tests.helpers.command_line import differences


def test_resuming_a_finished_run_changes_nothing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = [run / "metrics.jsonl", run / "config.yaml", *run.glob("checkpoints/*")]
    before, weights = [path.read_bytes() for path in kept], load_file(run / "exported" / "backbone.safetensors")
    assert main(["resume", str(run)]) == 0
    assert re.match(r"all \d+ steps are done\n", capsys.readouterr().out)
    assert [path.read_bytes() for path in kept] == before
    assert differences(load_file(run / "exported" / "backbone.safetensors"), weights) == []


def test_a_finished_run_without_checkpoints_keeps_its_weights(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    for checkpoint in copy.glob("checkpoints/*"):
        checkpoint.unlink()
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert main(["resume", str(copy)]) == 2
    assert "copy has ended, but its checkpoints are gone" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in before} == before
