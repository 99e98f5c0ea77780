"""Fast reader: the same pixels and errors as the plain one, with simplejpeg and without."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.data.decode import fast as fast_reading
from selfpatch.data.decode.fast import read_fast
from selfpatch.data.decode.multichannel import Raster
from selfpatch.data.decode.opening import LIMIT_VARIABLE
from selfpatch.data.decode.pillow import BadImage, read_image, read_picture
from selfpatch.data.sample_images import source_folder


@pytest.fixture(autouse=True, params=["simplejpeg", "Pillow"])
def decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "Pillow":
        monkeypatch.setattr(fast_reading, "simplejpeg", None)
    else:
        pytest.importorskip("simplejpeg")
    return request.param


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return read_image(source_folder() / "coffee.png").resize((301, 203))


def check(file: Path) -> Raster:
    """Check that the pixels are the plain reader's."""
    expected = read_image(file)
    read = read_fast(file)
    assert isinstance(read, Raster)
    assert read.size == expected.size
    assert read.pixels.dtype == torch.uint8
    assert read.pixels.permute(1, 2, 0).is_contiguous()  # channels last
    np.testing.assert_array_equal(read.pixels.permute(1, 2, 0).numpy(), np.asarray(expected))
    return read


def outcome(read, file: Path) -> np.ndarray | str:
    """Return the pixels of a file, or the reason why it cannot be read."""
    try:
        picture = read(file)
    except BadImage as error:
        return error.reason
    return np.asarray(picture) if isinstance(picture, Image.Image) else picture.pixels.permute(1, 2, 0).numpy()


def test_exif_behind_the_size_turns_the_picture_too(tmp_path: Path, photo: Image.Image) -> None:
    plain, turned, file = io.BytesIO(), io.BytesIO(), tmp_path / "photo.jpg"
    photo.save(plain, "JPEG")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(turned, "JPEG", exif=exif)
    start = turned.getvalue().index(b"\xff\xe1")
    segment = turned.getvalue()[start : start + 2 + int.from_bytes(turned.getvalue()[start + 2 : start + 4])]
    content, tables = plain.getvalue(), plain.getvalue().index(b"\xff\xc4")
    assert content.index(b"\xff\xc0") < tables
    file.write_bytes(content[:tables] + segment + content[tables:])
    assert check(file).size == (203, 301)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("quality", [30, 90, 100])
def test_jpegs_of_every_kind(
    tmp_path: Path, photo: Image.Image, subsampling: str, progressive: bool, quality: int
) -> None:
    for width, height in (photo.size, (17, 33), (8, 1), (1, 1)):
        file = tmp_path / f"{width}.jpg"
        part = photo.crop((0, 0, width, height))
        part.save(file, quality=quality, progressive=progressive, subsampling=subsampling)
        check(file)
    rgb = tmp_path / "rgb.jpg"
    photo.save(rgb, quality=quality, keep_rgb=True)
    check(rgb)


def test_simplejpeg_has_decoded_and_pixels_are_not_copied(
    tmp_path: Path, photo: Image.Image, decoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo.save(tmp_path / "i.jpg")
    monkeypatch.setattr(fast_reading, "read_image", lambda path: pytest.fail("went through Pillow"))
    if decoder == "simplejpeg":
        assert read_fast(tmp_path / "i.jpg").size == photo.size
    else:
        with pytest.raises(pytest.fail.Exception):
            read_fast(tmp_path / "i.jpg")


@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 77])
def test_exif_turns_the_picture(tmp_path: Path, photo: Image.Image, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "i.jpg", exif=exif)
    check(tmp_path / "i.jpg")


def test_xmp_turns_the_picture(tmp_path: Path, photo: Image.Image) -> None:
    packet = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    encoded = io.BytesIO()
    photo.save(encoded, "JPEG")
    content = encoded.getvalue()
    segment = b"\xff\xe1" + struct.pack(">H", len(packet) + 2) + packet
    (tmp_path / "i.jpg").write_bytes(content[:2] + segment + content[2:])
    assert check(tmp_path / "i.jpg").size == photo.size[::-1]


def test_broken_exif_does_not_lose_the_picture(tmp_path: Path, photo: Image.Image) -> None:
    for name, exif in {"garbage": b"Exif\0\0II*\0\xff\xff\xff\xff garbage", "short": b"Exif\0\0II"}.items():
        photo.save(tmp_path / f"{name}.jpg", exif=exif)
        check(tmp_path / f"{name}.jpg")


def test_grey_and_cmyk(tmp_path: Path, photo: Image.Image) -> None:
    for mode in ("L", "CMYK"):
        photo.convert(mode).save(tmp_path / f"{mode}.jpg")
        check(tmp_path / f"{mode}.jpg")


@pytest.mark.parametrize("extension", ["png", "webp", "gif", "tif", "bmp", "ppm"])
def test_other_formats_whatever_they_are_called(tmp_path: Path, photo: Image.Image, extension: str) -> None:
    photo.save(tmp_path / f"i.{extension}")
    check(tmp_path / f"i.{extension}")
    (tmp_path / f"i.{extension}").rename(tmp_path / "renamed.jpg")
    check(tmp_path / "renamed.jpg")
    photo.save(tmp_path / "i.png", "JPEG")
    check(tmp_path / "i.png")


@pytest.mark.parametrize("damage", ["half", "no end", "empty", "beginning", "text", "zeros", "missing", "folder"])
@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_damage_has_the_same_reason(tmp_path: Path, photo: Image.Image, extension: str, damage: str) -> None:
    file = tmp_path / f"image.{extension}"
    photo.save(file)
    whole = file.read_bytes()
    content = {
        "half": whole[: len(whole) // 2],
        "no end": whole[:-2],
        "empty": b"",
        "beginning": whole[:3],
        "text": b"<html>not found</html>",
        "zeros": whole[:3] + bytes(5000),
    }
    if damage in content:
        file.write_bytes(content[damage])
    else:
        file.unlink()
    if damage == "folder":
        file.mkdir()
    expected = outcome(read_image, file)
    np.testing.assert_array_equal(outcome(read_fast, file), expected)
    if damage != "no end":  # which Pillow forgives some formats
        assert isinstance(expected, str)


def test_noise_in_the_middle_of_a_file_reads_as_it_does_plainly(tmp_path: Path, photo: Image.Image) -> None:
    rng = np.random.default_rng(0)
    for progressive in (False, True):
        file = tmp_path / f"{progressive}.jpg"
        photo.resize((64, 48)).save(file, progressive=progressive)
        whole = np.frombuffer(file.read_bytes(), np.uint8)
        for _ in range(60):
            noisy = whole.copy()
            noisy[rng.integers(2, len(noisy), 6)] = rng.integers(0, 256, 6)
            file.write_bytes(noisy.tobytes())
            np.testing.assert_array_equal(outcome(read_fast, file), outcome(read_image, file))


def test_a_decompression_bomb_is_a_bad_image(
    tmp_path: Path, photo: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo.save(tmp_path / "bomb.jpg")
    pixels = photo.width * photo.height
    monkeypatch.setenv(LIMIT_VARIABLE, str(pixels - 1))
    with pytest.raises(BadImage, match=f"it has {photo.width} x {photo.height} pixels, more than {pixels - 1}"):
        read_fast(tmp_path / "bomb.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pixels // 4)  # below half, and so refused by Pillow
    monkeypatch.setenv(LIMIT_VARIABLE, str(pixels))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_fast(tmp_path / "bomb.jpg")


def test_other_numbers_of_channels_are_read_plainly(tmp_path: Path, photo: Image.Image) -> None:
    photo.convert("L").save(tmp_path / "grey.jpg")
    expected = read_picture(tmp_path / "grey.jpg", 1)
    read = read_fast(tmp_path / "grey.jpg", 1)
    assert isinstance(read, Raster)
    assert isinstance(expected, Raster)
    torch.testing.assert_close(read.pixels, expected.pixels)
    with pytest.raises(BadImage, match="its number of channels is 1, not 4"):
        read_fast(tmp_path / "grey.jpg", 4)


def test_real_photographs(data_dir: Path) -> None:
    for name, step in {"imagenet_sample_256": 100, "coco_mini": 8, "davis": 50, "tiny_imagenet": 300}.items():
        files = sorted(f for f in (data_dir / name).rglob("*") if f.suffix.lower() in (".jpg", ".jpeg"))[::step]
        assert files
        for file in files:
            check(file)
