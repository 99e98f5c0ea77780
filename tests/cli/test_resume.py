"""`selfpatch resume` of a finished run."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from selfpatch.cli.main import main
from tests.helpers.command_line import differences


def test_resuming_a_finished_run_changes_nothing(run: Path) -> None:
    kept = [run / "metrics.jsonl", run / "config.yaml", *run.glob("checkpoints/*")]
    before, weights = [path.read_bytes() for path in kept], load_file(run / "exported" / "backbone.safetensors")
    assert main(["resume", str(run)]) == 0
    assert [path.read_bytes() for path in kept] == before
    assert differences(load_file(run / "exported" / "backbone.safetensors"), weights) == []
