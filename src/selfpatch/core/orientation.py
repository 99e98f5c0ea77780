"""Orientation of images as their EXIF or TIFF tags give it."""

import contextlib

import numpy as np
from PIL import Image, ImageOps

ORIENTATION_TAG = 274
"""Tag of the orientation in TIFF, and so in EXIF."""


def turn_upright(image: Image.Image) -> None:
    """Turn a Pillow image upright, in place."""
    with contextlib.suppress(Exception):  # broken EXIF is no reason to lose the picture
        ImageOps.exif_transpose(image, in_place=True)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return the (width, height) that `turn_upright` would leave, from the header of an open JPEG image."""
    with contextlib.suppress(Exception):  # broken EXIF is no reason to lose the picture
        if image.getexif().get(ORIENTATION_TAG, 1) in (5, 6, 7, 8):
            return image.height, image.width
    return image.size


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels [h, w, ...] upright; orientations other than 1 to 8 leave them as they are."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels
