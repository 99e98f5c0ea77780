"""Pictures that views can be matched in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def smooth_pictures() -> list[Image.Image]:
    """Six pictures of smooth noise, of different sizes."""
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (5 + i, 7, 3), np.uint8) for i in range(6)]
    return [
        Image.fromarray(pixels).resize((90 + 10 * i, 80), Image.Resampling.BICUBIC) for i, pixels in enumerate(coarse)
    ]


def write_pictures(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for i, picture in enumerate(smooth_pictures()):
        picture.save(folder / f"{i}.png")
    return folder


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with the smooth pictures, 0.png to 5.png."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return write_pictures(tmp_path / "pictures")
