"""A labelled set for segmentation whose classes are colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from selfpatch.evaluation.segmentation.dataset import IGNORE

COLOURS = np.array([(250, 20, 20), (20, 250, 20), (20, 20, 250)], np.uint8)


def write_blocks(root: Path, *, train: int = 6, val: int = 3) -> Path:
    """Write images of blocks of 8 x 8 pixels, whose colour is the class; the first row of pixels is void."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for i in range(count):
            label = rng.integers(0, 3, (4, 5)).repeat(8, 0).repeat(8, 1)
            noisy = COLOURS[label].astype(int) + rng.integers(-20, 20, (32, 40, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(root / "images" / split / f"{i}.png")
            label[0] = IGNORE
            Image.fromarray(label.astype(np.uint8)).save(root / "labels" / split / f"{i}.png")
    (root / "classes.txt").write_text("red\ngreen\nblue\n")
    return root
