"""PNG files of 16 bits per channel: all layouts are read exactly, and damaged ones refused, not crashed on."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest

from selfpatch.data.decode.deep_png import BEGINNING, SIGNATURE, is_deep_png, read_deep_png
from selfpatch.data.decode.pillow import BadImage, read_picture
from tests.helpers.raster_files import bands, png16


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("size", [(20, 24), (1, 1), (3, 5), (2, 9), (9, 2), (8, 8)])
def test_pixels_are_exact(channels: int, interlaced: bool, size: tuple[int, int]) -> None:
    pixels = bands(channels, high=65536, size=size)
    for sub_filter in (False, True):
        content = png16(pixels, interlaced=interlaced, sub_filter=sub_filter)
        assert is_deep_png(content[:BEGINNING])
        read = read_deep_png(io.BytesIO(content))
        assert read.dtype == np.uint16
        np.testing.assert_array_equal(read, pixels)


def with_pixels(content: bytes, pixels: bytes) -> bytes:
    """Return the file with other filtered rows, under right check sums."""
    body = b"IDAT" + zlib.compress(pixels)
    chunk = (len(body) - 4).to_bytes(4) + body + zlib.crc32(body).to_bytes(4)
    return content[:BEGINNING] + chunk + content[-12:]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("interlaced", [False, True])
def test_a_whole_stream_of_too_few_rows_is_damage(tmp_path: Path, channels: int, interlaced: bool) -> None:
    content, file = png16(bands(channels), interlaced=interlaced), tmp_path / "a.png"
    rows = zlib.decompress(content[BEGINNING + 8 : -16])
    for length in (0, 1, len(rows) // 2, len(rows) - 1):
        file.write_bytes(with_pixels(content, rows[:length]))
        with pytest.raises(BadImage, match=f"it is truncated: its pixels have {length} bytes, not {len(rows)}"):
            read_picture(file, 1 if channels == 3 else channels)  # three channels are read by Pillow alone
    np.testing.assert_array_equal(read_deep_png(io.BytesIO(with_pixels(content, rows + bytes(100)))), bands(channels))


@pytest.mark.parametrize("cut", [BEGINNING, BEGINNING + 4, -13, -12, -6])
def test_a_file_that_ends_early_is_damage(cut: int) -> None:
    with pytest.raises(ValueError, match="it is truncated, or damaged at byte"):
        read_deep_png(io.BytesIO(png16(bands(4))[:cut]))


@pytest.mark.parametrize(
    ("position", "value"), [(16, b"\0\0\0\0"), (25, b"\1"), (25, b"\3"), (26, b"\1"), (27, b"\1"), (28, b"\2")]
)
def test_a_header_that_makes_no_sense_is_damage(position: int, value: bytes) -> None:
    content = bytearray(png16(bands(4)))
    content[position : position + len(value)] = value
    with pytest.raises(ValueError, match="a PNG file with a damaged header"):
        read_deep_png(io.BytesIO(content))


def test_other_files_are_not_deep() -> None:
    content = png16(bands(1))
    assert not is_deep_png(content[:24] + b"\x08" + content[25:BEGINNING])
    assert not is_deep_png(b"")
    assert not is_deep_png(SIGNATURE)
    assert not is_deep_png(b"GIF89a" + content[6:BEGINNING])
