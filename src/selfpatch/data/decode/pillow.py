"""Decoding of one image file to an upright picture: 8-bit RGB, or a raster of another number of channels."""

import contextlib
import math
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from selfpatch.core.orientation import turn_upright
from selfpatch.core.text import counted
from selfpatch.data.decode.multichannel import Raster, decode_raster
from selfpatch.data.decode.opening import open_image
from selfpatch.data.sources.image_files import ImageFile
from selfpatch.data.sources.remote import RemoteError

Picture = Image.Image | Raster
"""An RGB image, or a raster of any number of channels."""

Read = Callable[[ImageFile, int], Picture]
"""(file, number of channels) -> upright image, or BadImage."""

WIDE_GREY = ("I", "F")
"""First letters of the Pillow modes with more than 8 bits per pixel: I, I;16, I;16B, ..., F."""


BLOCK = 2**20
"""Pixels of more than 8 bits that are scaled at once."""


class BadImage(ValueError):
    """An image file that is missing, empty, truncated, no image, or too large to be decoded safely."""

    def __init__(self, file: ImageFile, reason: str, what: str = "") -> None:
        super().__init__(str(file), reason, what)  # all, so that it survives pickling
        self.path = str(file)
        self.reason = reason
        self.what = what  # e.g. `the labels`

    def __str__(self) -> str:
        return f"cannot read {f'{self.what} ' if self.what else ''}{self.path}: {self.reason}"


def read_image(file: ImageFile, draft: int | None = None) -> Image.Image:
    """Read the first frame of an image as RGB.

    - The EXIF orientation is applied.
    - Alpha is dropped and the colours below it are kept, as in all published loaders (`convert("RGB")`); a palette with
      transparency goes through RGBA first, so that its colours survive.
    - 16-bit grey is scaled to 8 bits, 65535 to 255; Pillow's own conversion would clip it at 255. Wider integers, and
      floats outside [0, 1], have no agreed white: the image's own range is stretched to [0, 255].

    Args:
        file: the image.
        draft: if given, a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if its longer side keeps this many pixels,
            which is several times faster.

    Raises:
        BadImage: the file is missing, no regular file, empty, truncated or no image, or has more pixels than
            `opening.max_pixels`: a decompression bomb, or a picture to be tiled first.
    """
    with as_bad_image(file), open_image(file) as image:
        _refuse_pages(image)
        if draft is not None:
            width, height = (math.ceil(side * draft / max(image.size)) for side in image.size)
            image.draft("RGB", (width, height))
        image.load()
        turn_upright(image)
        return _rgb(image)


@contextlib.contextmanager
def stored_image(file: ImageFile, what: str = "") -> Iterator[Image.Image]:
    """Open an image whose values are no colours, such as labels and depths: neither turned nor converted.

    Any error inside, such as one of decoding, is raised as BadImage, which says `what` the file holds.
    """
    with as_bad_image(file, what), open_image(file) as image:
        yield image


def read_picture(file: ImageFile, channels: int = 3) -> Picture:
    """Read an image of 3 channels by `read_image`, or of another number by `multichannel.decode_raster`.

    BadImage is raised as by `read_image`, and if the file has another number of channels.
    """
    if channels == 3:
        return read_image(file)
    with as_bad_image(file):
        return decode_raster(file, channels)


@contextlib.contextmanager
def as_bad_image(file: ImageFile, what: str = "") -> Iterator[None]:
    """Raise any error as BadImage: on damaged files decoders raise nearly anything.

    A server that cannot be reached says nothing of the image, so that its RemoteError stays as it is.
    """
    try:
        yield
    except (BadImage, RemoteError):
        raise
    except MemoryError as error:
        raise BadImage(file, "there is not enough memory for it", what) from error
    except Exception as error:  # OSError, SyntaxError, struct.error, ...
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise BadImage(file, reason, what) from error


def _refuse_pages(image: Image.Image) -> None:
    """Raise ValueError for a TIFF of equal grey pages, which are channels; pages of other sizes are thumbnails."""
    pages = getattr(image, "n_frames", 1)
    if image.format == "TIFF" and pages > 1 and image.mode.startswith(("L", *WIDE_GREY)):
        first = image.size
        image.seek(1)
        if image.size == first:
            raise ValueError(
                f"it holds {counted(pages, 'page')} of one size; if they are its channels, give --channels {pages}"
            )
        image.seek(0)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(WIDE_GREY):
        image = Image.fromarray(_to_8_bits(np.asarray(image)))
    elif image.mode in ("La", "RGBa"):  # premultiplied modes, which Pillow converts to no other
        image = image.convert("RGBA" if image.mode == "RGBa" else "LA")
    elif image.mode == "PA" or "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Scale wide integers or floats [h, w] to uint8."""
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return np.rint(np.arange(65536) * (255 / 65535)).astype(np.uint8)[values]

    def finite(rows: np.ndarray) -> np.ndarray:
        return np.nan_to_num(rows.astype(np.float64), posinf=0.0, neginf=0.0)

    # In blocks of rows: eight bytes a pixel would be much for a large image.
    blocks = np.array_split(values, min(len(values), 1 + values.size // BLOCK))
    low, high = min(finite(rows).min() for rows in blocks), max(finite(rows).max() for rows in blocks)
    white = 1.0 if np.issubdtype(values.dtype, np.floating) else 65535.0
    if low >= 0 and high <= white:
        low, high = 0.0, white
    span = high - low if high > low else 1.0
    return np.concatenate([np.rint((finite(rows) - low) * (255.0 / span)).astype(np.uint8) for rows in blocks])
