"""Pictures that evaluations draw: images side by side, and the files they are written to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image


def side_by_side(panels: Sequence[Image.Image]) -> Image.Image:
    """Join images of equal height to one row without gaps."""
    row = Image.new("RGB", (sum(panel.width for panel in panels), max(panel.height for panel in panels)))
    left = 0
    for panel in panels:
        row.paste(panel, (left, 0))
        left += panel.width
    return row


def scaled_to_height(image: Image.Image, height: int) -> Image.Image:
    """Resize an image (bicubic) to a height in pixels, its shape kept up to rounding."""
    return image.resize((max(1, round(image.width * height / image.height)), height), Image.Resampling.BICUBIC)


def save_picture(out: Path, name: str, picture: Image.Image) -> str:
    """Write a picture as out/pictures/NAME.jpg, and return its path relative to `out`."""
    relative = f"pictures/{name}.jpg"
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    picture.save(out / relative, quality=90)
    return relative
