"""Crops, resizing and colours of images with their labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from selfpatch.evaluation.segmentation.augmentation import (
    SquareCrop,
    TrainCrop,
    distort_colours,
    fitted_size,
    resize_bilinear,
    resize_nearest,
)
from selfpatch.evaluation.segmentation.dataset import IGNORE

WHOLE = (slice(None), slice(None))
COLOURS = np.array([(250, 20, 20), (20, 250, 20), (20, 20, 250)], np.uint8)


def picture(height: int, width: int) -> tuple[Image.Image, np.ndarray]:
    """Labels that the red channel repeats, in blocks; void in one corner."""
    label = np.arange(height)[:, None] // 7 % 3 + 3 * (np.arange(width) // 9 % 2)
    pixels = np.stack([label * 40, np.zeros_like(label), np.full_like(label, 255)], -1).astype(np.uint8)
    label[:2, :2] = IGNORE
    return Image.fromarray(pixels), label.astype(np.int64)


@pytest.mark.parametrize("size", [(80, 33), (11, 20), (37, 51), (1, 1)])
def test_resizing_a_window_equals_cutting_it_out_of_the_whole(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (37, 51, 3)).astype(np.uint8)
    window = (slice(size[0] // 3, size[0]), slice(0, size[1] // 2 + 1))
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    expected = F.interpolate(tensor, size, mode="bilinear")[0].permute(1, 2, 0).numpy()[window]
    assert np.abs(resize_bilinear(pixels, size, window).astype(float) - expected).max() <= 0.5 + 1e-3
    nearest = F.interpolate(tensor, size, mode="nearest")[0, 0].numpy()[window]
    np.testing.assert_array_equal(resize_nearest(pixels[..., 0], size, window), nearest)


def test_the_tighter_bound_on_a_side_wins() -> None:
    assert fitted_size(100, 200, 50) == (50, 100)
    assert fitted_size(40, 3000, 512) == (27, 2048)
    assert fitted_size(3000, 1, 8) == (32, 1)


@pytest.mark.parametrize("shape", [(60, 80), (1, 1), (40, 3000), (33, 33)])
def test_crops_have_one_size_and_void_where_the_image_ends(shape: tuple[int, int]) -> None:
    image, label = picture(*shape)
    for seed in range(6):
        pixels, classes = TrainCrop(32)(image, label, np.random.default_rng(seed))
        assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 32, 32))
        assert (classes.dtype, classes.shape) == (torch.int64, (32, 32))


def test_image_and_labels_stay_together() -> None:
    image, label = picture(60, 80)
    for seed in range(20):
        crop = TrainCrop(32, scale_range=(1.0, 2.0), short_side=60, colour=False)
        pixels, classes = crop(image, label, np.random.default_rng(seed))
        around = F.unfold(classes[None, None].float(), 5).unflatten(2, (28, 28))[0]  # what interpolation may reach
        alike = (around == around[12]).all(0) & (around[12] != IGNORE)
        assert alike.sum() > 100
        assert (pixels[0, 2:-2, 2:-2][alike] - classes[2:-2, 2:-2][alike] * 40).abs().max() <= 1


def test_padding_is_void_and_of_the_mean_colour() -> None:
    image, label = picture(60, 80)
    pixels, classes = TrainCrop(64, (0.25, 0.25), colour=False, fill=(1, 2, 3))(image, label, np.random.default_rng(0))
    assert (classes[16:] == IGNORE).all()
    assert (classes[:16, :21] != IGNORE).float().mean() > 0.9
    assert (classes[:16, 21:] == IGNORE).all()
    assert pixels[:, -1, -1].tolist() == [1, 2, 3]


def test_draws_come_from_the_generator_alone() -> None:
    image, label = picture(60, 80)
    first, again, other = (TrainCrop(32)(image, label, np.random.default_rng(s)) for s in (3, 3, 4))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_crops_that_one_class_fills_are_avoided() -> None:
    label = np.zeros((64, 256), np.int64)
    label[:, 240:] = 1
    image = Image.new("RGB", (256, 64))
    rngs = [np.random.default_rng(seed) for seed in range(60)]
    mixed = [TrainCrop(32, (1, 1), short_side=64, max_share=s) for s in (0.75, 1.0)]
    shares = [sum(len(crop(image, label, rng)[1].unique()) > 1 for rng in rngs) for crop in mixed]
    assert shares[0] > 1.5 * shares[1]


def test_half_of_the_crops_are_flipped() -> None:
    label = np.broadcast_to(np.arange(32), (32, 32)).copy().astype(np.int64)
    crop = TrainCrop(32, (1, 1), colour=False)
    flipped = [
        bool(crop(Image.new("RGB", (32, 32)), label, np.random.default_rng(s))[1][0, 0] == 31) for s in range(100)
    ]
    assert 30 < sum(flipped) < 70


def test_colours_are_distorted_within_bounds_and_sometimes_not_at_all() -> None:
    grey = np.full((4, 4, 3), 100, np.uint8)
    results = [distort_colours(grey, np.random.default_rng(s)) for s in range(200)]
    assert all(r.min() >= 33 and r.max() <= 199 for r in results)  # (100 - 32) / 2, (100 + 32) * 1.5
    assert sum(np.array_equal(r, grey) for r in results) > 2
    assert len({r.tobytes() for r in results}) > 50
    red = np.broadcast_to(np.array([200, 20, 20], np.uint8), (4, 4, 3))
    assert len({distort_colours(red, np.random.default_rng(s)).tobytes() for s in range(50)}) > 30


def test_resized_crops_keep_image_and_labels_together() -> None:
    label = (np.arange(60)[None] // 20 + np.zeros((40, 1), np.int64)).astype(np.int64)
    image = Image.fromarray(COLOURS[label])
    flips = set()
    for seed in range(10):
        pixels, classes = SquareCrop(24)(image, label, np.random.default_rng(seed))
        assert (pixels.shape, classes.shape) == ((3, 24, 24), (24, 24))
        flips.add(int(classes[0, 0]))
        hard = pixels.argmax(0)
        assert (hard == classes).float().mean() > 0.9
    assert flips == {0, 2}
