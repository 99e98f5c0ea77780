"""Pictures that evaluations draw: images side by side, and the files they are written to."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def side_by_side(panels: Sequence[Image.Image]) -> Image.Image:
    """Join RGB images of equal height to one row without gaps."""
    return Image.fromarray(np.hstack([np.asarray(panel) for panel in panels]))


def scaled_to_height(image: Image.Image, height: int) -> Image.Image:
    """Resize an image (bicubic) to a height in pixels, its shape kept up to rounding."""
    return image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.BICUBIC)


def save_picture(out: Path, name: str, picture: Image.Image) -> str:
    """Write a picture as out/pictures/NAME.jpg, and return its path relative to `out`."""
    relative = f"pictures/{name}.jpg"
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    picture.save(out / relative, quality=90)
    return relative
