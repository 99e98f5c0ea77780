"""Images of any number of channels are read exactly, whatever their layout; every kind of damage becomes a BadImage."""

from __future__ import annotations

import contextlib
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from selfpatch.core.orientation import upright
from selfpatch.data.decode.multichannel import Raster
from selfpatch.data.decode.opening import LIMIT_VARIABLE
from selfpatch.data.decode.pillow import BadImage, read_image, read_picture
from tests.helpers.raster_files import bands, write_png16, write_tiff


def pixels_of(path: Path, channels: int) -> np.ndarray:
    """Return pixels [h, w, C]."""
    raster = read_picture(path, channels)
    assert isinstance(raster, Raster)
    assert raster.size == (raster.pixels.shape[2], raster.pixels.shape[1])
    return raster.pixels.permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("layout", "options"),
    [
        ("hwc", {"photometric": "minisblack", "planarconfig": "contig"}),
        ("chw", {"photometric": "minisblack", "planarconfig": "separate"}),
        ("chw", {}),  # a page for each channel
        ("hwc", {}),  # as `tifffile.imwrite(path, array)` writes it: a page for each row
        ("chw", {"imagej": True}),
        ("hwc", {"photometric": "minisblack", "planarconfig": "contig", "compression": "zlib", "tile": (16, 16)}),
        ("hwc", {"photometric": "minisblack", "planarconfig": "contig", "byteorder": ">", "bigtiff": True}),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_tiffs_of_13_bands_in_every_layout(tmp_path: Path, layout: str, options: dict, dtype: type) -> None:
    pixels = bands(13, dtype, high=256 if dtype == np.uint8 else 10_000)
    stored = pixels if layout == "hwc" else pixels.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", np.ascontiguousarray(stored), **options)
    read = pixels_of(tmp_path / "a.tif", 13)
    assert read.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    np.testing.assert_array_equal(read, pixels / np.float32(65535) if dtype == np.uint16 else pixels)


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_and_alpha_of_8_and_16_bits(tmp_path: Path, channels: int, kind: str, dtype: type) -> None:
    pixels = bands(channels, dtype, high=np.iinfo(dtype).max)
    file = tmp_path / f"a.{kind}"
    if kind == "tif":
        write_tiff(file, pixels)
    elif dtype == np.uint16:
        write_png16(file, pixels)
    else:
        Image.fromarray(pixels.squeeze()).save(file)
    expected = pixels if dtype == np.uint8 else pixels / np.float32(65535)
    np.testing.assert_array_equal(pixels_of(file, channels), expected)


def test_three_channels_are_read_as_rgb_images(tmp_path: Path) -> None:
    write_png16(tmp_path / "a.png", bands(3))
    picture = read_picture(tmp_path / "a.png")
    assert isinstance(picture, Image.Image)
    assert picture.tobytes() == read_image(tmp_path / "a.png").tobytes()


@pytest.mark.parametrize(("got", "wanted"), [(3, 1), (3, 4), (4, 1), (1, 13), (13, 12), (2, 1)])
def test_another_number_of_channels_is_refused(tmp_path: Path, got: int, wanted: int) -> None:
    write_tiff(tmp_path / "a.tif", bands(got))
    message = rf"a\.tif: its number of channels is {got}, not {wanted}; .* --channels {got}$"
    with pytest.raises(BadImage, match=message):
        read_picture(tmp_path / "a.tif", wanted)


@pytest.mark.parametrize("size", [(13, 24), (24, 13)])
@pytest.mark.parametrize("channels", [1, 3])
def test_rows_and_columns_are_not_taken_for_channels(tmp_path: Path, size: tuple[int, int], channels: int) -> None:
    write_tiff(tmp_path / "a.tif", bands(channels, size=size))
    with pytest.raises(BadImage, match=f"number of channels is {channels}, not 13"):
        read_picture(tmp_path / "a.tif", 13)


def test_grey_that_is_stored_as_colour_is_grey(tmp_path: Path) -> None:
    grey = bands(1, np.uint8, 256)
    Image.fromarray(grey.repeat(3, axis=2)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.png", 1), grey)


def test_a_palette_is_looked_up(tmp_path: Path) -> None:
    image = Image.fromarray(bands(4, np.uint8, 256)).quantize(64)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.png", 4), np.asarray(image.convert("RGBA")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["tif", "png", "deep png"])
def test_orientation_is_applied(tmp_path: Path, orientation: int, kind: str) -> None:
    pixels = bands(2, np.uint8, 256)
    file = tmp_path / f"a.{kind[-3:]}"
    expected = np.stack([_turned(pixels[..., c], orientation) for c in range(2)], axis=-1)
    if kind == "tif":
        extra = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(file, pixels, photometric="minisblack", planarconfig="contig", extratags=extra)
    else:
        exif = Image.Exif()
        exif[274] = orientation
        Image.fromarray(pixels).save(file, exif=exif)
    np.testing.assert_array_equal(upright(pixels, orientation), expected)
    if kind == "deep png":
        eight_bit, deep = file.read_bytes(), tmp_path / "deep.png"
        write_png16(deep, pixels.astype(np.uint16))
        start = eight_bit.index(b"eXIf") - 4
        chunk = eight_bit[start : start + 12 + struct.unpack(">I", eight_bit[start : start + 4])[0]]
        plain = deep.read_bytes()
        file.write_bytes(plain[:33] + chunk + plain[33:])  # after the header
        expected = expected / np.float32(65535)
    np.testing.assert_array_equal(pixels_of(file, 2), expected)


def _turned(plane: np.ndarray, orientation: int) -> np.ndarray:
    """Pillow does the same."""
    image = Image.fromarray(plane)
    image.getexif()[274] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


def test_no_data_values_become_0(tmp_path: Path) -> None:
    floats, counts = bands(2, np.float32), bands(2)
    holes = {"a": (floats, -9999.0), "b": (counts, 65535)}
    for name, (pixels, nodata) in holes.items():
        broken = pixels.copy()
        broken[3, 4, 1] = nodata
        extra = [(42113, "s", 0, str(nodata), True)]  # GDAL's tag
        file = tmp_path / f"{name}.tif"
        tifffile.imwrite(file, broken, photometric="minisblack", planarconfig="contig", extratags=extra)
        assert pixels_of(file, 2)[3, 4, 1] == 0
        assert pixels_of(file, 2)[3, 5, 1] > 0
    floats[0, 0], floats[0, 1] = np.nan, np.inf
    write_tiff(tmp_path / "c.tif", floats)
    assert not pixels_of(tmp_path / "c.tif", 2)[0, :2].any()


def test_white_is_zero_and_bits(tmp_path: Path) -> None:
    pixels = bands(1)
    tifffile.imwrite(tmp_path / "a.tif", pixels[..., 0], photometric="miniswhite")
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.tif", 1), (65535 - pixels) / np.float32(65535))
    bits = bands(1, np.uint8, 2)[..., 0] > 0
    for name in ("b.tif", "b.png"):
        Image.fromarray(bits).save(tmp_path / name)
        np.testing.assert_array_equal(pixels_of(tmp_path / name, 1)[..., 0], bits * 255)


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "group4", "packbits"])
def test_compressed_grey_tiffs_need_no_other_package(tmp_path: Path, compression: str) -> None:
    grey = Image.fromarray(np.linspace(0, 255, 480).reshape(20, 24).astype(np.uint8))
    image = grey.convert("1") if compression == "group4" else grey
    image.save(tmp_path / "a.tif", compression=compression)
    expected = np.asarray(image.convert("L"), np.float32)
    np.testing.assert_allclose(pixels_of(tmp_path / "a.tif", 1)[..., 0], expected, atol=3)


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiff(tmp_path / "a.tif", bands(13))
    needs = "<COMPRESSION.LZW: 5> requires the 'imagecodecs' package"

    def refuse(*args: object, **kwargs: object) -> None:
        raise ValueError(needs)

    with monkeypatch.context() as patch:
        patch.setattr(tifffile.TiffPageSeries, "asarray", refuse)
        with pytest.raises(BadImage, match=rf"{needs}; run `pip install 'selfpatch\[tiff\]'`"):
            read_picture(tmp_path / "a.tif", 13)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(BadImage, match=r"tifffile, which reads those, is not installed; run `pip"):
        read_picture(tmp_path / "a.tif", 13)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "tile": (16, 16)}])
def test_damage_is_always_a_bad_image(tmp_path: Path, options: dict) -> None:
    whole = tmp_path / "whole.tif"
    stored = bands(13).transpose(2, 0, 1)
    tifffile.imwrite(whole, stored, photometric="minisblack", planarconfig="separate", **options)
    content, file = whole.read_bytes(), tmp_path / "a.tif"
    for size in (0, 3, 8, 100, len(content) // 2, len(content) - 100):
        file.write_bytes(content[:size])
        with pytest.raises(BadImage):
            read_picture(file, 13)
    rng = np.random.default_rng(0)
    for _ in range(40):
        noisy = bytearray(content)
        for position in rng.integers(0, 400, 4):
            noisy[position] = rng.integers(256)
        file.write_bytes(noisy)
        with contextlib.suppress(BadImage):
            assert pixels_of(file, 13).shape[2] == 13
    with pytest.raises(BadImage, match="No such file"):
        read_picture(tmp_path / "none.tif", 13)


def test_gigantic_images_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "200")
    write_tiff(tmp_path / "a.tif", bands(1))
    write_png16(tmp_path / "a.png", bands(2))
    with pytest.raises(BadImage, match=r"24 x 20 pixels, more than 200 of 4 bytes in all .* cut it into tiles"):
        read_picture(tmp_path / "a.tif", 1)
    with pytest.raises(BadImage, match=r"24 x 20 pixels of 8 bytes, more than 200 of 4 .* cut it into tiles"):
        read_picture(tmp_path / "a.png", 2)
    monkeypatch.setenv(LIMIT_VARIABLE, "960")
    assert len(pixels_of(tmp_path / "a.png", 2)) == 20
    write_tiff(tmp_path / "a.tif", bands(13))
    with pytest.raises(BadImage, match="24 x 20 pixels of 52 bytes, more than 960 of 4"):
        read_picture(tmp_path / "a.tif", 13)
    monkeypatch.setenv(LIMIT_VARIABLE, str(480 * 13))
    assert len(pixels_of(tmp_path / "a.tif", 13)) == 20
