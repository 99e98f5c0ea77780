"""`selfpatch show`: pictures of image files."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from selfpatch.cli.main import main


@pytest.mark.slow
def test_show(capsys: pytest.CaptureFixture[str], run: Path, photos: Path, tmp_path: Path) -> None:
    images = [photos / "cat" / "000.png", photos / "dog" / "000.png"]
    where = f"--out {tmp_path} --resolution 48 --window all --border clip --device cpu"
    assert main(f"show --weights {run} {images[0]} {images[1]} {where}".split()) == 0
    written = [tmp_path / "cat-000.png", tmp_path / "dog-000.png"]
    assert capsys.readouterr().out.splitlines()[-2:] == [str(path) for path in written]
    for path in written:
        assert min(Image.open(path).size) > 100
