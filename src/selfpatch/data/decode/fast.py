"""Faster decoding of JPEG files by simplejpeg; all other files go through `decode.pillow`.

simplejpeg and Pillow wrap the same library and give the same pixels; simplejpeg saves the copy into a Pillow image.
"""

import contextlib
import io

import numpy as np
import torch

from selfpatch.core.orientation import ORIENTATION_TAG, upright
from selfpatch.data.decode.multichannel import Raster
from selfpatch.data.decode.opening import open_image, open_stream
from selfpatch.data.decode.pillow import Picture, as_bad_image, read_image, read_picture
from selfpatch.data.sources.image_files import ImageFile
from selfpatch.data.sources.remote import RemoteError

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

JPEG_BEGINNING = b"\xff\xd8\xff"


def read_fast(file: ImageFile, channels: int = 3) -> Picture:
    """Read an image as `decode.pillow.read_picture` does, with the same pixels and errors.

    An image of 3 channels is returned as a raster whose memory is channels-last, as the decoder leaves it.
    """
    if channels != 3:
        return read_picture(file, channels)
    if (raster := _decode_jpeg(file)) is not None:
        return raster
    image = read_image(file)
    with as_bad_image(file):  # a large image may not fit twice into the memory
        return Raster.of(image)


def _decode_jpeg(file: ImageFile) -> Raster | None:
    """Return an upright image, or None if Pillow must decode: no JPEG, not three colours, or damaged."""
    if simplejpeg is None:
        return None
    try:
        with open_stream(file) as stream:
            if stream.read(len(JPEG_BEGINNING)) != JPEG_BEGINNING:
                return None
            stream.seek(0)
            content = stream.read()
        # Pillow reads the header alone: the limit on pixels, its notion of a file's colours and orientation.
        with open_image(io.BytesIO(content)) as image:
            if image.mode != "RGB":
                return None
            orientation = 1
            with contextlib.suppress(Exception):  # broken EXIF is no reason to lose the picture
                orientation = image.getexif().get(ORIENTATION_TAG, 1)
        pixels = np.ascontiguousarray(upright(simplejpeg.decode_jpeg(content), orientation))
        return Raster(torch.from_numpy(pixels).permute(2, 0, 1))
    except RemoteError:
        raise
    except Exception:  # decoders raise nearly anything on damaged files
        return None
