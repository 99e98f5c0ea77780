"""Images whose colour tells their depth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = np.array([(250, 20, 20), (20, 250, 20), (20, 20, 250)], np.uint8)
METRES = np.array([1.0, 3.0, 7.0])


def coloured_depth(rng: np.random.Generator, height: int = 6, width: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of 8 x 8 pixels: the image, uint8 [h, w, 3], and its depths in millimetres, uint16 [h, w]."""
    classes = rng.integers(0, 3, (height, width)).repeat(8, 0).repeat(8, 1)
    depth = (METRES[classes] * 1000).astype(np.uint16)
    depth[0] = 0  # not known
    return COLOURS[classes], depth


def write_depth(root: Path, *, train: int = 6, test: int = 3) -> Path:
    """Write train/ and test/ with images of 48 x 64 pixels."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for part in ("rgb", "depth"):
            (root / split / part).mkdir(parents=True)
        for i in range(count):
            pixels, depth = coloured_depth(rng)
            Image.fromarray(pixels).save(root / split / "rgb" / f"{i}.png")
            Image.fromarray(depth).save(root / split / "depth" / f"{i}.png")
    return root


def write_nyu(root: Path, *, train: int = 2, test: int = 1) -> Path:
    """Write lists as NYU Depth v2 has them, with images of 480 x 640 pixels."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        lines = []
        for i in range(count):
            names = f"/kitchen/{split}_rgb_{i}.png", f"/kitchen/{split}_depth_{i}.png"
            (root / "kitchen").mkdir(parents=True, exist_ok=True)
            for name, values in zip(names, coloured_depth(rng, 60, 80), strict=True):
                Image.fromarray(values).save(root / name.lstrip("/"))
            lines.append(" ".join([*names, "518.8579"]))
        (root / f"nyu_{split}.txt").write_text("\n".join([*lines, "/kitchen/lost.png None 518.8579", ""]))
    return root
