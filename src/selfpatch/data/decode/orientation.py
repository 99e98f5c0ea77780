"""Images the right way up, as the orientation in their EXIF or TIFF tags says."""

from __future__ import annotations

import contextlib

import numpy as np
from PIL import Image, ImageOps

ORIENTATION_TAG = 274
"""Of TIFF, and so of EXIF."""


def turn_upright(image: Image.Image) -> None:
    """Turns a Pillow image in place."""
    with contextlib.suppress(Exception):  # broken EXIF is no reason to lose the picture
        ImageOps.exif_transpose(image, in_place=True)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """[h, w, ...] as stored -> upright. Orientations are 1 to 8; any other value leaves the pixels as they are."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
