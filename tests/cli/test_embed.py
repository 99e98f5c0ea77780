"""`selfpatch embed`."""

from __future__ import annotations

from pathlib import Path

import pytest

import selfpatch
from selfpatch.cli.main import main
from tests.helpers.command_line import write_photos


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, out = write_photos(tmp_path / "photos", 3), tmp_path / "f.npz"
    options = f"--data {photos} --out {out} --features patches --resolution 16 --workers 0 --limit 2 --device cpu"
    assert main(f"embed --weights baseline:raw-patch:8 {options}".split()) == 0
    assert f"written to {out}" in capsys.readouterr().out
    assert selfpatch.read_embeddings(out).vectors("patches").shape == (2, 2, 2, 192)
    assert main(f"embed --weights baseline:raw-patch:8 {options}".split()) == 2
    assert f"selfpatch: {out} exists; remove it" in capsys.readouterr().err
