"""Decoding of PNG files with 16 bits per channel, of which Pillow's own reader keeps 8 in all but grey images.

Pillow's decoder of filtered rows does the work, which takes the pixels of a row in any layout: read once as big-endian
numbers it gives their high bytes, read as little-endian ones their low bytes. It checks all sizes, and survives damaged
files.
"""

import contextlib
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image

from selfpatch.core.orientation import ORIENTATION_TAG, upright
from selfpatch.data.decode.opening import check_size

SIGNATURE = b"\x89PNG\r\n\x1a\n"
BEGINNING = 33
"""Bytes of the signature and of the header, which comes first: the size, the depth and the colours of the image."""

_GREY, _RGB, _GREY_ALPHA, _RGBA = 0, 2, 4, 6
_LAYOUTS = {
    _GREY: ("I;16", ("I;16B",), 1),
    _GREY_ALPHA: ("RGBA", ("RGBA",), 2),  # four bytes a pixel, in the order of the file
    _RGB: ("RGB", ("RGB;16B", "RGB;16L"), 3),
    _RGBA: ("RGBA", ("RGBA;16B", "RGBA;16L"), 4),
}
"""Pillow's mode, its names of the layouts of a row, and the number of channels, by the colour type of the file."""

_WHOLE = ((0, 0, 1, 1),)
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row of the images that an interlaced one is divided into, and the steps across and down."""


def is_deep_png(beginning: bytes) -> bool:
    """Return whether a file that begins with these `BEGINNING` bytes is a PNG with 16 bits per channel."""
    return beginning.startswith(SIGNATURE) and beginning[24:25] == b"\x10"


def read_deep_png(stream: BinaryIO) -> np.ndarray:
    """Return upright pixels [h, w, C] uint16.

    Raises:
        ValueError: the file is damaged or truncated, or has too many pixels.
    """
    content = stream.read()
    width, height, _, colour, *methods, interlaced = struct.unpack(">IIBBBBB", content[16:29])
    if colour not in _LAYOUTS or any(methods) or interlaced > 1 or not width or not height:
        raise ValueError("it is a PNG file with a damaged header")
    mode, layouts, channels = _LAYOUTS[colour]
    check_size(width, height, 4 * channels)  # which become float32
    orientation, parts = 1, []
    for name, data in _chunks(memoryview(content)):
        if name == b"IDAT":
            parts.append(data)
        elif name == b"eXIf":
            orientation = _orientation(bytes(data))
    rows = _inflated(b"".join(parts), _length(width, height, 2 * channels, interlaced))
    size = width, height
    planes = [np.asarray(Image.frombytes(mode, size, rows, "zip", layout, interlaced)) for layout in layouts]
    if colour == _GREY:
        pixels = planes[0][..., None]
    elif colour == _GREY_ALPHA:
        pixels = planes[0].view(">u2").astype(np.uint16)
    else:
        pixels = planes[0].astype(np.uint16) << 8 | planes[1]
    return upright(pixels, orientation)


def _inflated(deflated: bytes, length: int) -> bytes:
    """Return the filtered rows as a stream that is stored, not compressed, so that decoding it twice costs little.

    ValueError is raised if there are fewer than `length` bytes: Pillow would leave the rest of the pixels as it is.
    """
    rows = zlib.decompressobj().decompress(deflated, length)
    if len(rows) < length:
        raise ValueError(f"it is truncated: its pixels have {len(rows)} bytes, not {length}")
    return zlib.compress(rows, 0)


def _length(width: int, height: int, bytes_per_pixel: int, interlaced: int) -> int:
    """Return the number of bytes of all rows, each with that of its filter; Adam7 divides an image into seven."""
    parts = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in (_ADAM7 if interlaced else _WHOLE)]
    return sum(rows * (1 + columns * bytes_per_pixel) for columns, rows in parts if columns > 0 and rows > 0)


def _chunks(content: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield name and data of each chunk up to the end mark; raise ValueError if it is missing or a chunk is damaged."""
    start = len(SIGNATURE)
    while len(content) >= start + 12:
        length, end = int.from_bytes(content[start : start + 4]), start + 8
        name, data = bytes(content[start + 4 : end]), content[end : end + length]
        if content[end + length : end + length + 4] != zlib.crc32(content[start + 4 : end + length]).to_bytes(4):
            break
        if name == b"IEND":
            return
        yield name, data
        start = end + length + 4
    raise ValueError(f"it is truncated, or damaged at byte {start}")


def _orientation(exif: bytes) -> int:
    with contextlib.suppress(Exception):  # broken EXIF is no reason to lose the picture
        tags = Image.Exif()
        tags.load(exif)
        return int(tags.get(ORIENTATION_TAG, 1))
    return 1
