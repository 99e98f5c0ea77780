"""Clips of drawn squares, in the layout of DAVIS-2017."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch.evaluation.video_segmentation.dataset import write_mask

Tree = Callable[..., Path]
COLOURS = np.array([[30, 30, 30], [220, 40, 40], [40, 60, 220]], np.uint8)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Draws a clip `toy`: two squares of 32 pixels, one red (1), one blue (2), 16 pixels further in each frame."""

    def draw(frames: int = 6, size: tuple[int, int] = (128, 192), colours: np.ndarray = COLOURS) -> Path:
        root = tmp_path / "davis"
        (root / "ImageSets" / "2017").mkdir(parents=True)
        (root / "ImageSets" / "2017" / "val.txt").write_text("toy\n")
        (root / "JPEGImages" / "480p" / "toy").mkdir(parents=True)
        for i in range(frames):
            mask = np.zeros(size, np.uint8)
            mask[16:48, 16 * i : 16 * i + 32] = 1
            mask[80:112, 160 - 16 * i : 192 - 16 * i] = 2
            Image.fromarray(colours[mask]).save(root / f"JPEGImages/480p/toy/{i:05d}.jpg", quality=95, subsampling=0)
            write_mask(root / f"Annotations/480p/toy/{i:05d}.png", mask)
        return root

    return draw
