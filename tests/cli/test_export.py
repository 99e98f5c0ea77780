"""`selfpatch export`: files and how to load them."""

from __future__ import annotations

from pathlib import Path

import pytest

import selfpatch
from selfpatch.cli.main import main


def test_export(capsys: pytest.CaptureFixture[str], run: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    assert main(f"export --weights {run} --to timm --out {out}".split()) == 0
    shown = capsys.readouterr().out
    assert f"{out}/model.safetensors" in shown
    assert f"local-dir:{out}" in shown
    assert main(f"export --weights {run} --to timm --out {out}".split()) == 2
    assert "is no empty folder; name another one with --out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="there is no export to 'tf'; use one of timm, safetensors, hf, onnx, torch"):
        selfpatch.export(str(run), "tf", tmp_path / "other")
