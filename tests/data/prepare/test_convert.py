"""Preparation of one image: size, orientation, and bytes that stay."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch.data.decode.pillow import BadImage, read_image
from selfpatch.data.prepare.convert import prepared
from selfpatch.data.sources.image_files import LoadedImage
from tests.helpers.shard_files import photo


def decoded(content: bytes) -> Image.Image:
    return read_image(LoadedImage("x", content))


@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_small_images_keep_their_bytes(extension: str) -> None:
    content = photo(0, extension, (64, 40))
    assert prepared(LoadedImage("x", content), 64, 90)[:2] == (content, False)


@pytest.mark.parametrize(("size", "expected"), [((800, 500), (100, 62)), ((90, 400), (22, 100)), ((3000, 2), (100, 1))])
def test_large_images_are_resized_like_the_whole_image_is(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """A JPEG is decoded at a fraction of its size first; that changes less than a level."""
    content = photo(1, "jpg", size)
    image, resized, _ = prepared(LoadedImage("x", content), 100, 95)
    assert resized
    assert decoded(image).size == expected
    stream = io.BytesIO()
    decoded(content).resize(expected, Image.Resampling.LANCZOS).save(stream, "JPEG", quality=95)
    difference = np.abs(np.asarray(decoded(stream.getvalue()), int) - np.asarray(decoded(image), int))
    assert difference.mean() < 1


def test_a_resized_image_is_upright_and_has_no_metadata() -> None:
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    stream = io.BytesIO()
    Image.new("CMYK", (200, 120)).save(stream, "JPEG", exif=exif)
    content, _, _ = prepared(LoadedImage("x", stream.getvalue()), 100, 90)
    with Image.open(io.BytesIO(content)) as image:
        assert (image.size, image.mode, image.format, len(image.getexif())) == ((60, 100), "RGB", "JPEG", 0)


def test_a_damaged_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(photo(2, "jpg", (300, 300))[:2000])
    with pytest.raises(BadImage, match=r"a\.jpg: .*truncated"):
        prepared(tmp_path / "a.jpg", 100, 90)
