"""What `reading.read_picture` reads, faster: JPEG files, which nearly all photographs are, go through simplejpeg.

simplejpeg and Pillow wrap the same library and give the same pixels; this one leaves out the copy into a Pillow image.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from selfpatch.data.decode.multichannel import Raster
from selfpatch.data.decode.orientation import ORIENTATION_TAG, upright
from selfpatch.data.decode.pillow import Picture, read_image, read_picture
from selfpatch.data.sources.image_files import ImageFile, opened

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

JPEG_BEGINNING = b"\xff\xd8\xff"


def read_fast(file: ImageFile, channels: int = 3) -> Picture:
    """Reads an image of so many channels: 3 into a raster whose pixels lie as the decoder left them, channels last, any
    other number as `reading.read_picture` does.

    Raises:
        BadImage: as `reading.read_picture`.
    """
    if channels != 3:
        return read_picture(file, channels)
    pixels = _decode_jpeg(file)
    if pixels is None:
        pixels = np.array(read_image(file))
    return Raster(torch.from_numpy(pixels).permute(2, 0, 1))


def _decode_jpeg(file: ImageFile) -> np.ndarray | None:
    """[h, w, 3], upright. None: no JPEG of three colours, or anything is wrong with it; Pillow has the say on those."""
    if simplejpeg is None:
        return None
    try:
        with opened(file) as stream:
            if stream.read(len(JPEG_BEGINNING)) != JPEG_BEGINNING:
                return None
            stream.seek(0)
            content = stream.read()
        # The header alone, read by Pillow: its limit on pixels, its notion of a file's colours and orientation.
        with Image.open(io.BytesIO(content)) as image:
            if image.mode != "RGB":
                return None
            orientation = _orientation(image)
        return np.ascontiguousarray(upright(simplejpeg.decode_jpeg(content), orientation))
    except Exception:  # whatever decoders raise on damaged files
        return None


def _orientation(image: Image.Image) -> int:
    """As `orientation.turn_upright` finds it."""
    try:
        return image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # broken EXIF is no reason to lose the picture
        return 1
