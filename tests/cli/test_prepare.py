"""`selfpatch prepare`."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfpatch.cli.main import main
from tests.helpers.command_line import write_photos


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out = write_photos(tmp_path / "photos", 3), tmp_path / "shards"
    assert main(f"prepare --data {photos} --out {out} --max-side 32 --workers 0".split()) == 0
    assert "3 images in 1 shard" in capsys.readouterr().out
    assert main(f"prepare --data {photos} --out {out} --max-side 40 --workers 0".split()) == 2
    assert "other max_side" in capsys.readouterr().err
