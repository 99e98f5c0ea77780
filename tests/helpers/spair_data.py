"""Pairs of painted images in the layout of SPair-71k."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (96, 64)
"""Width and height of the written images."""


def coloured_patches(seed: int) -> np.ndarray:
    """[64, 96, 3]: each patch of 8 pixels in a colour of its own."""
    angles = np.random.default_rng(seed).permutation(96) * 2 * np.pi / 96
    colours = 127.5 + 110 * np.stack([np.cos(angles), np.sin(angles), np.full(96, 0.1)], axis=1)
    return colours.reshape(8, 12, 3).round().astype(np.uint8).repeat(8, 0).repeat(8, 1)


def write_spair(root: Path, pairs: dict[str, dict[str, Any]], images: dict[str, np.ndarray]) -> Path:
    """A split `test` of the small layout; names are <number>-<source>-<target>:<category>."""
    for folder in ("Layout/small", "PairAnnotation/test"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "Layout" / "small" / "test.txt").write_text("\n".join(pairs))
    for name, values in pairs.items():
        (_, source, target), category = name.partition(":")[0].split("-"), name.partition(":")[2]
        (root / "JPEGImages" / category).mkdir(parents=True, exist_ok=True)
        for image in (source, target):
            Image.fromarray(images[image]).save(root / "JPEGImages" / category / f"{image}.png")
        record = {
            "category": category, "src_imname": f"{source}.png", "trg_imname": f"{target}.png",
            "src_bndbox": [0, 0, 95, 63], "trg_bndbox": [0, 0, 95, 63], **values,
        }  # fmt: skip
        (root / "PairAnnotation" / "test" / f"{name}.json").write_text(json.dumps(record))
    return root
