"""Images whose pixels are numbers, of classes or objects, as the files store them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from selfpatch.data.decode.pillow import stored_image


class LabelMap(NamedTuple):
    """Numbers of the pixels, int64 [h, w], and whether they are shades of grey, which a palette's indices are not."""

    values: np.ndarray
    grey: bool


def refuse_jpeg(image: Image.Image) -> None:
    """Raise ValueError if an image is stored as a JPEG file."""
    if image.format == "JPEG":
        raise ValueError("it is a JPEG file, which blurs numbers, whatever it is called; save it as PNG")


def read_label_map(path: Path, what: str) -> LabelMap:
    """Read palette indices, or grey values of 1, 8 or 16 bits, as stored.

    Alpha that is opaque everywhere is dropped, and a colour picture of three equal bands is taken for grey: tools write
    these without being asked. Everything else would need a guess.

    Args:
        path: an image file.
        what: what the file holds, for errors, e.g. `the labels`.

    Raises:
        ValueError: the file cannot be read, has colours or transparent pixels, or is a JPEG, which blurs numbers.
    """
    with stored_image(path, what) as image:
        refuse_jpeg(image)
        bands, values, mode = image.getbands(), np.asarray(image), f"it is a picture of mode {image.mode}"
        if len(bands) in (2, 4) and bands[-1].upper() == "A":
            if (values[..., -1] != 255).any():
                raise ValueError(f"{mode} with transparent pixels; give one opaque number per pixel")
            values = values[..., :-1] if len(bands) == 4 else values[..., 0]
        if bands[:3] == ("R", "G", "B") and (values == values[..., :1]).all():
            values = values[..., 0]
        if values.ndim != 2 or values.dtype.kind == "f" or (values.size and values.min() < 0):
            raise ValueError(f"{mode}; give a palette or grey PNG of numbers, not of colours")
        return LabelMap(values.astype(np.int64), bands[0] != "P")
