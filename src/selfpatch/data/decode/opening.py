"""Opening of image files: wanted formats and regular files only, and sizes checked before anything is decoded."""

import contextlib
import ctypes
import importlib
import os
import warnings
from collections.abc import Iterator
from functools import cache
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from selfpatch.data.sources import limits
from selfpatch.data.sources.image_files import ImageFile, opened
from selfpatch.data.sources.limits import BYTES_PER_PIXEL, LIMIT_VARIABLE

FORMATS = {
    "JPEG": "JpegImagePlugin",
    "PNG": "PngImagePlugin",
    "WEBP": "WebPImagePlugin",
    "AVIF": "AvifImagePlugin",
    "BMP": "BmpImagePlugin",
    "DIB": "BmpImagePlugin",
    "GIF": "GifImagePlugin",
    "TIFF": "TiffImagePlugin",
    "PPM": "PpmImagePlugin",
    "JPEG2000": "Jpeg2KImagePlugin",
    "TGA": "TgaImagePlugin",
}
"""Pillow's names of the formats that are read, and the modules that register them. Others are never tried, whatever a
file is called: the decoder of EPS starts Ghostscript, and rare ones are rarely tested."""

# `check_size` refuses what Pillow would warn of.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def max_pixels() -> int:
    """Return `limits.max_pixels`; if the environment sets it, Pillow's own limit is raised to it."""
    limit = limits.max_pixels()
    if os.environ.get(LIMIT_VARIABLE) and Image.MAX_IMAGE_PIXELS is not None:  # Pillow refuses twice as many
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limit)
    return limit


def check_resized(size: tuple[int, int], width: int, height: int) -> None:
    """Check the size that an image of `size` (width, height) is resized to, before it takes memory.

    Raises:
        ValueError: the result would be too large, as that of a very long image whose shorter side is enlarged.
    """
    if width * height > (limit := max_pixels()):
        raise ValueError(
            f"an image of {size[0]} x {size[1]} pixels, resized to {width} x {height}, would have more than {limit} "
            "pixels; use images whose sides differ less, or a lower resolution"
        )


def check_size(width: int, height: int, bytes_per_pixel: int = BYTES_PER_PIXEL) -> None:
    """Raise ValueError for an image that would take too much memory once decoded, or has an extreme side.

    A file of some kilobytes can claim any size, and an image that is one pixel high has no size that could be resized.
    """
    limit = max_pixels()
    longest = max(65_535, limit // 100)
    if width * height * max(1, bytes_per_pixel / BYTES_PER_PIXEL) > limit or max(width, height) > longest:
        of = f" of {bytes_per_pixel} bytes" if bytes_per_pixel > BYTES_PER_PIXEL else ""
        raise ValueError(
            f"it has {width} x {height} pixels{of}, more than {limit} of {BYTES_PER_PIXEL} bytes in all or {longest} "
            f"along a side; cut it into tiles, or set {LIMIT_VARIABLE}"
        )


@cache
def _formats() -> tuple[str, ...]:
    """Return the formats that the installed Pillow has; `Image.open` would load the modules of all others too."""
    found = []
    for name, module in FORMATS.items():
        with contextlib.suppress(ImportError):  # AVIF came with Pillow 11.3
            importlib.import_module(f"PIL.{module}")
            found.append(name)
    _quiet_libtiff()
    return tuple(found)


def _quiet_libtiff() -> None:
    """Let libtiff print no errors: those of damaged files are raised by Pillow too, and are told with the file's name.

    Pillow offers no way to it; its module is linked with libtiff, where its symbols are found.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler(None)


@contextlib.contextmanager
def open_stream(file: ImageFile) -> Iterator[BinaryIO]:
    """Open an image file for reading bytes; raise OSError or ValueError if it is not regular or too long."""
    with opened(file) as stream:
        length = stream.seek(0, os.SEEK_END)
        max_pixels()
        if length > (limit := limits.max_file_bytes()):
            raise ValueError(f"it has {length} bytes, more than {limit}; cut it into tiles, or set {LIMIT_VARIABLE}")
        stream.seek(0)
        yield stream


@contextlib.contextmanager
def open_image(file: ImageFile | BinaryIO) -> Iterator[Image.Image]:
    """Open an image file, or an open one at its beginning, by Pillow: its header is read, its size checked.

    Raises:
        ValueError: it is no image of a wanted format, or too large.
        OSError: it cannot be opened, or is damaged; damaged files may raise anything.
    """
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(open_stream(file)) if isinstance(file, ImageFile) else file
        try:
            image = stack.enter_context(Image.open(stream, formats=_formats()))
        except UnidentifiedImageError:
            formats = ", ".join(_formats())
            raise ValueError(f"it is empty, damaged, or no image of a format that is read ({formats})") from None
        check_size(*image.size)
        yield image
