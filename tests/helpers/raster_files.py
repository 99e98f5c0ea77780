"""Writers of image files with any number of channels."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import tifffile


def bands(channels: int, dtype: type = np.uint16, high: int = 10_000, size: tuple[int, int] = (20, 24)) -> np.ndarray:
    """Return pixels [h, w, C] without symmetry, in the range of Sentinel-2."""
    return np.random.default_rng(channels).integers(0, high, (*size, channels)).astype(dtype)


def write_png16(path: Path, pixels: np.ndarray) -> None:
    """Write pixels [h, w, C] uint16; Pillow does not write 16 bits of more than one channel."""
    path.write_bytes(png16(pixels))


def png16(pixels: np.ndarray, *, interlaced: bool = False, sub_filter: bool = False) -> bytes:
    """Return a PNG file of pixels [h, w, C] uint16."""
    h, w, c = pixels.shape
    steps = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    passes = [pixels[y::dy, x::dx] for y, x, dy, dx in steps] if interlaced else [pixels]
    rows = b"".join(_row(row, sub_filter) for part in passes if part.size for row in part)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", w, h, 16, {1: 0, 2: 4, 3: 2, 4: 6}[c], 0, 0, interlaced)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _row(row: np.ndarray, sub_filter: bool) -> bytes:
    """Return a row [w, C] of a PNG: as it is, or as differences of bytes to the pixel on the left."""
    values = row.astype(">u2")
    if not sub_filter:
        return b"\0" + values.tobytes()
    stored = values.view(np.uint8).reshape(len(row), -1)
    return b"\1" + np.diff(stored, axis=0, prepend=np.zeros_like(stored[:1])).tobytes()


def write_tiff(path: Path, pixels: np.ndarray) -> None:
    """Write pixels [h, w, C], interleaved."""
    planar = {} if pixels.shape[2] == 1 else {"planarconfig": "contig"}
    tifffile.imwrite(path, pixels.squeeze(2) if not planar else pixels, photometric="minisblack", **planar)
