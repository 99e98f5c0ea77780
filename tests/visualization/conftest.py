"""Images that the pictures are drawn of."""

from __future__ import annotations

from pathlib import Path

import pytest
import skimage.data
import torch
from PIL import Image
from torch import Tensor


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """A wide photograph and a tall one of the same name in another folder."""
    pixels = skimage.data.astronaut()
    paths = [tmp_path / "a" / "astronaut.png", tmp_path / "b" / "astronaut.png"]
    for path, part in zip(paths, [pixels[:256], pixels[:, 100:356]], strict=True):
        path.parent.mkdir()
        Image.fromarray(part).save(path)
    return paths


@pytest.fixture
def crops() -> Tensor:
    """uint8 [3, 3, 64, 64]."""
    pixels = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)
    return torch.stack([pixels[:, i : i + 64, i : i + 64] for i in (0, 100, 200)])
