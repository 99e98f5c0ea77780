"""A small data set in the layout of revisited Oxford and Paris."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RED, GREEN, BLUE = (220, 40, 40), (40, 200, 60), (40, 60, 220)
COLOURS = [RED, (200, 60, 60), GREEN, (60, 180, 80), BLUE, (70, 80, 200)]
"""Database: pairs of similar colours."""
TRUTHS: list[dict[str, Any]] = [
    {"bbx": [8.0, 8.0, 40.0, 32.0], "easy": [0], "hard": [1], "junk": [5]},
    {"bbx": [8.0, 8.0, 40.0, 32.0], "easy": [2, 3], "hard": [], "junk": []},
]


def write_retrieval(root: Path, truths: list[dict[str, Any]] | None = None) -> Path:
    """Write a database of plain images, and queries: a red and a green box on blue."""
    (root / "jpg").mkdir(parents=True)
    for i, colour in enumerate(COLOURS):
        Image.new("RGB", (48, 40), colour).save(root / "jpg" / f"image_{i}.png")
    for i, colour in enumerate((RED, GREEN)):
        pixels = np.full((40, 48, 3), BLUE, np.uint8)
        pixels[8:32, 8:40] = colour
        Image.fromarray(pixels).save(root / "jpg" / f"query_{i}.png")
    record = {
        "imlist": [f"image_{i}" for i in range(len(COLOURS))],
        "qimlist": ["query_0", "query_1.png"],
        "gnd": TRUTHS if truths is None else truths,
    }
    (root / "gnd_tiny.json").write_text(json.dumps(record))
    return root
