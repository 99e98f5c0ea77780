"""A labelled set that is hard enough for every step of a protocol to change its score."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = 3


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and labels that have little to do with each other, so that any change of a step changes the score."""
    root, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(3)
    for split, count in (("train", 4), ("val", 3)):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for i in range(count):
            label = rng.integers(0, CLASSES, (4, 5)).repeat(8, 0).repeat(8, 1)
            pixels = (40, 120, 200) * (label[..., None] == (0, 1, 2)) + rng.integers(0, 55, (*label.shape, 3))
            if split == "val":  # taken for each other, which the matching hides
                label = np.array([0, 2, 1])[label]
            label[rng.random(label.shape) < 0.2] = 255
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "images" / split / f"{i}.png")
            Image.fromarray(label.astype(np.uint8)).save(root / "labels" / split / f"{i}.png")
    (root / "classes.txt").write_text("background\na\nb\n")
    return root
