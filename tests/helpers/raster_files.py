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
    h, w, c = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", w, h, 16, {1: 0, 2: 4, 3: 2, 4: 6}[c], 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def write_tiff(path: Path, pixels: np.ndarray) -> None:
    """Write pixels [h, w, C], interleaved."""
    planar = {} if pixels.shape[2] == 1 else {"planarconfig": "contig"}
    tifffile.imwrite(path, pixels.squeeze(2) if not planar else pixels, photometric="minisblack", **planar)
