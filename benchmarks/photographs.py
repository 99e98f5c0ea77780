"""Photographs of ImageNet's usual size, cut out of scikit-image's: what a loader reads where no data set is at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from selfpatch.data.sample_images import TRAINING, source_folder

SIZE = 500, 375
"""Width and height of most photographs of ImageNet, in pixels."""
MAX_ZOOM = 1.5
"""Largest scale of a source, as a multiple of the one at which it covers a photograph."""
QUALITY = 90


def write_photographs(folder: Path, count: int) -> Path:
    """Write `count` JPEG files into a new folder, and return it; a number gives the same files everywhere."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    sources = [Image.open(source_folder() / name).convert("RGB") for name in TRAINING]
    for number in range(count):
        source = sources[number % len(sources)]
        scale = rng.uniform(1, MAX_ZOOM) * max(side / full for side, full in zip(SIZE, source.size, strict=True))
        scaled = source.resize([max(side, round(scale * full)) for side, full in zip(SIZE, source.size, strict=True)])
        left, top = (int(rng.integers(full - side + 1)) for side, full in zip(SIZE, scaled.size, strict=True))
        photograph = scaled.crop((left, top, left + SIZE[0], top + SIZE[1]))
        photograph.save(folder / f"{number:04d}.jpg", quality=QUALITY)
    return folder
