"""Files of the pictures that evaluations draw."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def save_picture(out: Path, name: str, picture: Image.Image) -> str:
    """Write a picture as out/pictures/NAME.jpg, and return its path relative to `out`."""
    relative = f"pictures/{name}.jpg"
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    picture.save(out / relative, quality=90)
    return relative
