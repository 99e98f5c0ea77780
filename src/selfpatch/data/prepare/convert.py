"""Preparation of one image: decoded once, made smaller if it is large, and hashed."""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from selfpatch.data.decode.opening import open_image, open_stream
from selfpatch.data.decode.pillow import as_bad_image, read_image
from selfpatch.data.prepare.near_duplicates import perceptual_hash
from selfpatch.data.sources.image_files import ImageFile, LoadedImage

DRAFT = 1.5
"""Longer side, as a multiple of the wanted one, that a JPEG keeps when it is decoded at a fraction of its size."""


class PreparedImage(NamedTuple):
    """The bytes to store and the perceptual hash of an image."""

    content: bytes
    resized: bool  # `content` is a new JPEG file, otherwise the original
    hash: np.ndarray  # [2] uint64


def prepared(file: ImageFile, max_side: int, quality: int) -> PreparedImage:
    """Return an image whose longer side has at most `max_side` pixels; smaller images keep their bytes.

    Resized images are upright 8-bit RGB without metadata, in JPEG with chroma at half the resolution (4:2:0).

    Raises:
        BadImage: the image is damaged, or no image that `read_image` reads.
    """
    with as_bad_image(file), open_stream(file) as stream:
        content = stream.read()
    image = read_image(LoadedImage(str(file), content), draft=round(DRAFT * max_side))
    scale = max_side / max(image.size)
    if scale >= 1:
        return PreparedImage(content, False, perceptual_hash(image))
    size = [max(1, round(scale * side)) for side in image.size]
    small = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=quality, optimize=True)
    return PreparedImage(encoded.getvalue(), True, perceptual_hash(small))


def ending_of(content: bytes) -> str:
    """Return the ending of the files of an image's format, e.g. `.png`."""
    with open_image(io.BytesIO(content)) as image:
        return {"JPEG": ".jpg", "MPO": ".jpg", "JPEG2000": ".jp2"}.get(image.format or "", f".{image.format}".lower())
