"""Every kind of image that Pillow reads becomes upright 8-bit RGB; every kind of damage becomes a BadImage."""

from __future__ import annotations

import contextlib
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch.data.decode.opening import LIMIT_VARIABLE
from selfpatch.data.decode.pillow import BadImage, read_image

RAMP = np.linspace(0, 1, 64 * 48).reshape(48, 64)
"""A picture without symmetry: dark at the top left, bright at the bottom right."""


def grey(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    pixels = np.asarray(image).astype(int)
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 1])
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])
    return pixels[..., 0]


def colours(seed: int = 0, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (12, 16, channels), dtype=np.uint8)


@pytest.mark.parametrize("extension", ["png", "bmp", "tif", "ppm", "webp", "tga"])
def test_rgb_is_read_unchanged(tmp_path: Path, extension: str) -> None:
    file = tmp_path / f"image.{extension}"
    Image.fromarray(colours()).save(file, **({"lossless": True} if extension == "webp" else {}))
    np.testing.assert_array_equal(np.asarray(read_image(file)), colours())


@pytest.mark.parametrize("extension", ["jpg", "jp2", "avif"])
def test_lossy_formats_are_read_closely(tmp_path: Path, extension: str) -> None:
    Image.fromarray(np.uint8(RAMP * 255)).convert("RGB").save(tmp_path / f"image.{extension}")
    np.testing.assert_allclose(np.asarray(read_image(tmp_path / f"image.{extension}"))[..., 1], RAMP * 255, atol=6)


@pytest.mark.parametrize("name", ["png16.png", "tif16.tif", "tif16-big.tif", "pgm16.pgm", "tif32.tif"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, name: str) -> None:
    values = np.rint(RAMP * 65535)
    dtype = {"tif16-big.tif": ">u2", "tif32.tif": "<i4"}.get(name, "<u2")
    if name == "pgm16.pgm":
        (tmp_path / name).write_bytes(b"P5 64 48 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values.astype(dtype)).save(tmp_path / name)
    np.testing.assert_allclose(grey(read_image(tmp_path / name)), values / 257, atol=0.51)


def test_dark_16_bit_grey_stays_dark(tmp_path: Path) -> None:
    Image.fromarray((RAMP * 20000 + 5000).astype("<u2")).save(tmp_path / "dark.png")
    np.testing.assert_allclose(grey(read_image(tmp_path / "dark.png")), (RAMP * 20000 + 5000) / 257, atol=0.51)


def test_wider_ranges_are_stretched(tmp_path: Path) -> None:
    cases = {"int": (RAMP * 10**6 - 10**5).astype("<i4"), "float": (RAMP * 9 - 4).astype("<f4")}
    for name, values in cases.items():
        Image.fromarray(values).save(tmp_path / f"{name}.tif")
        np.testing.assert_allclose(grey(read_image(tmp_path / f"{name}.tif")), RAMP * 255, atol=0.51)
    Image.fromarray(RAMP.astype("<f4") / 2).save(
        tmp_path / "unit.tif"
    )  # within [0, 1]: white is 1, whatever is reached
    np.testing.assert_allclose(grey(read_image(tmp_path / "unit.tif")), RAMP * 127.5, atol=0.51)
    Image.fromarray(np.full((4, 4), 300, "<f4")).save(tmp_path / "flat.tif")
    assert grey(read_image(tmp_path / "flat.tif")).max() == 0


def test_grey_and_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.uint8(RAMP * 255)).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(grey(read_image(tmp_path / "grey.png")), np.uint8(RAMP * 255))
    Image.fromarray(RAMP > 0.5).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(grey(read_image(tmp_path / "bits.png")), 255 * (RAMP > 0.5))


def test_alpha_is_dropped_and_the_colours_kept(tmp_path: Path) -> None:
    rgba = colours(channels=4)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "rgba.png")), rgba[..., :3])
    Image.fromarray(rgba[..., :2], "LA").save(tmp_path / "la.png")
    np.testing.assert_array_equal(grey(read_image(tmp_path / "la.png")), rgba[..., 0])
    Image.fromarray(rgba[..., :3]).save(tmp_path / "key.png", transparency=tuple(map(int, rgba[0, 0, :3])))
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "key.png")), rgba[..., :3])


@pytest.mark.parametrize("transparency", [None, 1, bytes([0, 128, 255])])
def test_palettes_with_and_without_transparency(tmp_path: Path, transparency: int | bytes | None) -> None:
    palette = np.array([[255, 0, 0], [0, 255, 0], [10, 20, 30]], np.uint8)
    numbers = np.random.default_rng(0).integers(0, 3, (8, 9), dtype=np.uint8)
    image = Image.fromarray(numbers, "P")
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "p.png", **({} if transparency is None else {"transparency": transparency}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "p.png")), palette[numbers])


def test_cmyk(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.tif")
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    for name in ("red.tif", "red.jpg"):
        np.testing.assert_allclose(np.asarray(read_image(tmp_path / name))[3, 3], [255, 0, 0], atol=3)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.T),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].T),
        (8, np.rot90),
        (77, lambda a: a),
    ],
)
@pytest.mark.parametrize("extension", ["png", "tif", "webp"])
def test_exif_turns_the_picture(tmp_path: Path, orientation: int, turn, extension: str) -> None:
    stored = np.uint8(RAMP * 255)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if extension == "webp" else {}
    Image.fromarray(stored).convert("RGB").save(tmp_path / f"i.{extension}", exif=exif, **options)
    np.testing.assert_array_equal(grey(read_image(tmp_path / f"i.{extension}")), turn(stored))


def test_broken_exif_does_not_lose_the_picture(tmp_path: Path) -> None:
    Image.fromarray(np.uint8(RAMP * 255)).save(
        tmp_path / "i.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage", quality=95
    )
    assert read_image(tmp_path / "i.jpg").size == (64, 48)


@pytest.mark.parametrize("extension", ["gif", "webp", "png", "tif"])
def test_the_first_frame_of_an_animation(tmp_path: Path, extension: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    options = {"lossless": True} if extension == "webp" else {}
    frames[0].save(tmp_path / f"a.{extension}", save_all=True, append_images=frames[1:], **options)
    assert read_image(tmp_path / f"a.{extension}").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pages_that_are_channels_are_no_picture(tmp_path: Path, dtype: type) -> None:
    pages = [Image.fromarray(np.full((8, 8), value, dtype)) for value in (10, 20, 30, 40)]
    pages[0].save(tmp_path / "bands.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(BadImage, match="it holds 4 pages of one size; if they are its channels, give --channels 4"):
        read_image(tmp_path / "bands.tif")
    pages[0].save(tmp_path / "thumbnail.tif", save_all=True, append_images=[pages[0].resize((4, 4))])
    assert read_image(tmp_path / "thumbnail.tif").size == (8, 8)


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "gif", "tif", "bmp"])
@pytest.mark.parametrize("damage", ["half", "empty", "text", "zeros", "missing"])
def test_damage_is_a_bad_image(tmp_path: Path, extension: str, damage: str) -> None:
    file = tmp_path / f"image.{extension}"
    Image.fromarray(colours()).resize((200, 200)).save(file)
    whole = file.read_bytes()
    content = {"half": whole[: len(whole) // 2], "empty": b"", "text": b"<html>not found</html>", "zeros": bytes(5000)}
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(content[damage])
    with pytest.raises(BadImage) as caught:
        read_image(file)
    assert caught.value.path == str(file)
    assert caught.value.reason
    assert str(caught.value).startswith(f"cannot read {file}: ")
    assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason


def test_noise_in_the_middle_of_a_file_is_a_picture_or_a_bad_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for extension in ("jpg", "png", "tif", "gif", "webp"):
        file = tmp_path / f"image.{extension}"
        Image.fromarray(colours()).resize((64, 64)).save(file)
        whole = np.frombuffer(file.read_bytes(), np.uint8)
        for _ in range(40):
            noisy = whole.copy()
            noisy[rng.integers(0, len(noisy), 12)] = rng.integers(0, 256, 12)
            file.write_bytes(noisy.tobytes())
            with contextlib.suppress(BadImage):
                assert read_image(file).mode == "RGB"


def test_a_decompression_bomb_is_a_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setenv(LIMIT_VARIABLE, "10000")
    assert read_image(tmp_path / "bomb.png").size == (100, 100)
    monkeypatch.setenv(LIMIT_VARIABLE, "9999")
    with pytest.raises(BadImage, match="it has 100 x 100 pixels, more than 9999 of 4 bytes in all"):
        read_image(tmp_path / "bomb.png")
    monkeypatch.delenv(LIMIT_VARIABLE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4999)  # a program that lowered Pillow's own limit keeps it
    with pytest.raises(BadImage, match="decompression bomb"):
        read_image(tmp_path / "bomb.png")


def test_real_photographs(data_dir: Path) -> None:
    files = sorted((data_dir / "imagenet_sample_256").rglob("*.JPEG"))[:20]
    assert all(min(read_image(file).size) == 256 for file in files)
    greys = [f for f in sorted((data_dir / "tiny_imagenet").rglob("*.JPEG"))[:300] if Image.open(f).mode == "L"]
    assert greys
    assert all(grey(read_image(file)).shape == (64, 64) for file in greys)
