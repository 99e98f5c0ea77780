"""Crops: image and depth stay together, and the frame of NYU is cut off."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from selfpatch.evaluation.depth.augmentation import DepthCrop, resized
from tests.evaluation.depth.conftest import COLOURS, METRES


def plain(height: int, width: int, **settings: object) -> DepthCrop:
    return DepthCrop(height, width, **{"nyu_box": False, "rotation": 0.0, "colour": False, **settings})  # type: ignore[arg-type]


def coordinates(height: int, width: int) -> tuple[Image.Image, np.ndarray]:
    """An image whose red and green are column and row, and depths that tell the same."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([columns % 256, rows % 256, 0 * rows], -1).astype(np.uint8)
    return Image.fromarray(pixels), (rows * 1000 + columns + 1).astype(np.float32)


def test_image_and_depth_are_cut_and_flipped_together() -> None:
    image, depth = coordinates(20, 30)
    corners, flips = set(), set()
    for seed in range(40):
        pixels, metres = plain(8, 12)(image, depth, np.random.default_rng(seed))
        assert pixels.shape == (3, 8, 12)
        assert metres.shape == (1, 8, 12)
        told = pixels[1].float() * 1000 + pixels[0].float() + 1
        torch.testing.assert_close(told, metres[0])
        corners.add((int(pixels[1].min()), int(pixels[0].min())))
        flips.add(bool(pixels[0, 0, 0] > pixels[0, 0, 1]))
    assert len(corners) > 20
    assert flips == {True, False}


def test_nyu_is_cut_to_the_inside_of_its_frame() -> None:
    image, depth = coordinates(480, 640)
    crop = plain(427, 565, nyu_box=True)
    _, metres = crop(image, depth, np.random.default_rng(0))
    values = metres.long() - 1
    rows, columns = values // 1000, values % 1000
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (45, 471, 43, 607)
    with pytest.raises(ValueError, match=r"has 30 x 20 pixels, but region nyu is for images of 640 x 480"):
        crop(*coordinates(20, 30), np.random.default_rng(0))


def test_rotated_pixels_from_outside_have_no_depth() -> None:
    classes = np.zeros((40, 40), np.int64)
    image, depth = Image.fromarray(COLOURS[classes]), METRES[classes].astype(np.float32)
    unknown = [
        int((plain(40, 40, rotation=20.0)(image, depth, np.random.default_rng(seed))[1] == 0).sum())
        for seed in range(20)
    ]
    assert 0 in unknown
    assert max(unknown) > 20


def test_colours_change_half_of_the_images_and_no_depth() -> None:
    image, depth = coordinates(8, 8)
    crop = plain(8, 8, colour=True)
    outcomes = [crop(image, depth, np.random.default_rng(seed)) for seed in range(30)]
    plain_outcomes = [plain(8, 8)(image, depth, np.random.default_rng(seed)) for seed in range(30)]
    changed = [not torch.equal(a[0], b[0]) for a, b in zip(outcomes, plain_outcomes, strict=True)]
    assert 8 <= sum(changed) <= 22
    assert all(torch.equal(a[1], b[1]) for a, b in zip(outcomes, plain_outcomes, strict=True))


def test_small_images_are_refused_or_resized() -> None:
    image, depth = coordinates(20, 30)
    with pytest.raises(ValueError, match="an image of 30 x 20 pixels is smaller than the crop of 24 x 24"):
        plain(24, 24)(image, depth, np.random.default_rng(0))
    pixels, metres = plain(24, 24, resolution=24)(image, depth, np.random.default_rng(0))
    assert pixels.shape[1:] == metres.shape[1:] == (24, 24)
    assert resized(image, 10).size == (15, 10)
    assert resized(image, None) is image
    with pytest.raises(ValueError, match=r"an image of 60000 x 1 pixels, resized to 14400000 x 240, would have more"):
        resized(Image.new("RGB", (60_000, 1)), 240)
