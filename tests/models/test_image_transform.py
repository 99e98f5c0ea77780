"""Images of any kind as the batch that an encoder takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.core.orientation import ORIENTATION_TAG
from selfpatch.data.decode.pillow import read_image
from selfpatch.models.image_transform import ImageTransform

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
TRANSFORM = ImageTransform(MEAN, STD, 8)
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)


def expected() -> torch.Tensor:
    """The central 40 x 48 pixels, by NumPy."""
    values = (PIXELS[:, 1:49] / 255 - np.array(MEAN)) / np.array(STD)
    return torch.from_numpy(values.transpose(2, 0, 1)).float()


@pytest.mark.parametrize(
    "images",
    [
        Image.fromarray(PIXELS),
        PIXELS,
        (PIXELS / 255).astype(np.float64),
        torch.from_numpy(PIXELS).movedim(-1, 0),
        torch.from_numpy(PIXELS).movedim(-1, 0) / 255,
        torch.from_numpy(PIXELS).movedim(-1, 0)[None],
        [Image.fromarray(PIXELS), PIXELS],
    ],
)
def test_all_kinds_give_the_same(images: Any) -> None:
    batch = TRANSFORM(images)
    assert batch.dtype == torch.float32
    for image in batch:
        torch.testing.assert_close(image, expected())


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_images_are_turned_upright_as_the_loaders_turn_them(tmp_path: Path, suffix: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = orientation
    file = tmp_path / f"image.{suffix}"
    Image.fromarray(PIXELS).save(file, exif=exif)
    upright = read_image(file)
    with Image.open(file) as image:
        assert torch.equal(TRANSFORM(image), TRANSFORM(np.asarray(upright)))
        assert torch.equal(TRANSFORM(image), TRANSFORM(upright)), "neither turns it twice, nor changes the given image"


def test_a_read_only_array_is_copied() -> None:
    frozen = PIXELS.copy()
    frozen.flags.writeable = False
    torch.testing.assert_close(TRANSFORM(frozen)[0], expected())


def test_grey_images_serve_three_channels() -> None:
    grey = PIXELS[..., 0]
    for image in (grey, Image.fromarray(grey), torch.from_numpy(grey)[None]):
        batch = TRANSFORM(image)
        assert batch.shape == (1, 3, 40, 48)
        pixels = batch * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
        torch.testing.assert_close(pixels[0, 0], pixels[0, 2])


def test_sizes() -> None:
    assert TRANSFORM([PIXELS, PIXELS[:30]], size=30).shape == (2, 3, 24, 24)
    assert TRANSFORM(PIXELS, size=(17, 33)).shape == (1, 3, 16, 32)
    assert TRANSFORM(PIXELS, size=np.int64(17)).shape == (1, 3, 16, 16)
    for size in ((17,), 17.5, "17"):
        with pytest.raises(ValueError, match=r"size is .*17.*; use a number of pixels, or height and width"):
            TRANSFORM(PIXELS, size=size)  # type: ignore[arg-type]
    flat = np.full((40, 80, 3), 100, np.uint8)
    flat[:, 20:60] = 200
    square = TRANSFORM(flat, size=16)
    middle = TRANSFORM(flat[:, 24:56], size=(16, 8))
    torch.testing.assert_close(square[..., 4:12], middle, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("photo.jpg", "an image is a str; give a PIL image"),
        ([], "there are no images; give a PIL image"),
        (np.zeros((2, 2, 2, 2, 2)), r"an image is a ndarray \[2, 2, 2, 2, 2\]"),
        (torch.zeros(4, 16, 16), "an image has 4 channels; the encoder takes 3"),
        (torch.full((3, 16, 16), 255.0), r"values of type torch.float32 from 255 to 255; use uint8, or floats in \["),
        (torch.full((3, 16, 16), 5), "values of type torch.int64 from 5 to 5"),
        (np.full((16, 16, 3), 9, np.uint16), "values of type torch.uint16 from 9 to 9"),
        (torch.full((3, 16, 16), float("nan")), "from nan to nan"),
        (Image.fromarray(np.full((16, 16), 400, np.uint16)), "values of type torch.uint16 from 400 to 400"),
        (torch.zeros(3, 0, 16), r"an image is a Tensor \[3, 0, 16\]; give"),
        ([PIXELS, PIXELS[:30]], "images are of 48 x 40 and 48 x 24 pixels; give a size, e.g. size=224"),
        (torch.zeros(3, 7, 30), "an image would be 30 x 7 pixels, and a patch has 8; use a larger size"),
    ],
)
def test_what_is_no_image(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TRANSFORM(images)
