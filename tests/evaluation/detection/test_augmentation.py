"""Augmentation: boxes, masks and images move together, sizes are the published ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from selfpatch.evaluation.detection.augmentation import Placement, draw, fit_size, place_objects, render, whole
from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.detection.dataset import AnnotatedImage, Instance
from selfpatch.evaluation.detection.masks import extent, from_pixels
from tests.helpers.detect_data import (
    outline,
)

pytest.importorskip("pycocotools.coco")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # in pycocotools
KINDS = get_args(get_type_hints(DetectionConfig)["augmentation"])
coordinate = st.floats(0, 1)


def config(kind: Any, short_sides: tuple[int, ...], long_side: int) -> DetectionConfig:
    return DetectionConfig(augmentation=kind, short_sides=short_sides, long_side=long_side)


def drawn(kind: Any, seed: int, size: tuple[int, int] = (64, 48)) -> Placement:
    return draw(*size, config(kind, (40, 56, 80), 100), np.random.default_rng(seed))


def instance(category: int, box: tuple[float, float, float, float], label: int = 1) -> Instance:
    outlines = (np.array(outline(category, box)).reshape(-1, 2),)
    return Instance(label, box, outlines, crowd=False)


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    kind=st.sampled_from(KINDS),
    category=st.sampled_from([90, 7, 3]),
    corner=st.tuples(coordinate, coordinate),
    size=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)),
)
def test_boxes_are_the_extents_of_their_masks_after_any_augmentation(
    seed: int, kind: Any, category: int, corner: tuple[float, float], size: tuple[float, float]
) -> None:
    """Exactly where it is cut, to a pixel where it is whole: there the box keeps the annotator's fractions. Only a
    square reaches its extent with whole pixels; the tips of other shapes may be too narrow for any."""
    width, height = 64 * size[0], 48 * size[1]
    left, top = corner[0] * (64 - width), corner[1] * (48 - height)
    placement = drawn(kind, seed)
    box = (left, top, left + width, top + height)
    target = place_objects([instance(category, box)], 64, 48, placement)
    assert target["masks"].shape[1:] == (placement.height, placement.width)
    placed = torch.tensor(placement.box(box))
    inner = torch.tensor([placement.width, placement.height])
    cut = bool((placed[:2] < -0.01).any() or (placed[2:] > inner + 0.01).any())
    for found, mask in zip(target["boxes"], target["masks"], strict=True):
        around = torch.tensor(extent(mask.numpy()), dtype=torch.float32)
        if cut:
            assert torch.equal(found, around)
        elif category == 90:
            assert (found - around).abs().max() <= 1.01
        assert ((around - found) * torch.tensor([1, 1, -1, -1])).min() >= -1.01


@pytest.mark.parametrize("kind", KINDS)
def test_the_image_moves_with_its_masks(kind: Any) -> None:
    """A white rectangle on black: the pixels that are white are those of the mask, but for a blurred rim."""
    box = (13.0, 9.0, 41.0, 30.0)
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[9:30, 13:41] = 255
    annotated = AnnotatedImage(1, "none", Path("none"), 64, 48, (instance(90, box),))
    seen = 0
    for seed in range(40):
        image, target = render(Image.fromarray(pixels), annotated, drawn(kind, seed))
        mask = (
            target["masks"].amax(0).bool() if len(target["masks"]) else torch.zeros(image.shape[1:], dtype=torch.bool)
        )
        white = image[0] > 127
        rim = 2 * sum(mask.shape)  # pixels that a rounding to the next one can change
        assert int((white != mask).sum()) <= rim
        seen += int(mask.sum() > 2 * rim)
    assert seen > 10


def test_a_mask_of_run_lengths_moves_like_its_outline() -> None:
    box = (13.0, 9.0, 41.0, 30.0)
    outlined = instance(90, box)
    pixels = np.zeros((48, 64), bool)
    pixels[9:30, 13:41] = True
    as_runs = Instance(1, box, from_pixels(pixels), crowd=False)
    for seed in range(20):
        placement = drawn("multi-scale", seed)
        a, b = (place_objects([one], 64, 48, placement)["masks"].int() for one in (outlined, as_runs))
        assert a.shape == b.shape
        assert int((a - b).abs().sum()) <= 2 * sum(a.shape[1:])


def test_an_object_outside_the_crop_is_gone() -> None:
    placement = Placement((0.0, 0.0, 20.0, 20.0), 40, 40)
    inside, outside = instance(90, (2.0, 2.0, 9.0, 9.0), 1), instance(90, (30.0, 2.0, 40.0, 9.0), 2)
    target = place_objects([inside, outside], 64, 48, placement)
    assert target["labels"].tolist() == [1]
    assert target["boxes"].tolist() == [[4, 4, 18, 18]]
    none = place_objects([outside], 64, 48, placement)
    assert none["boxes"].shape == (0, 4)
    assert none["masks"].shape == (0, 40, 40)


def test_a_mirrored_placement_mirrors_points() -> None:
    placement = Placement((10.0, 0.0, 30.0, 20.0), 40, 40, flip=True)
    assert placement.box((10.0, 0.0, 15.0, 10.0)) == (30, 0, 40, 20)


def test_multi_scale_draws_the_published_sizes() -> None:
    sides = tuple(range(480, 801, 32))
    whole_images, crops = 0, 0
    for seed in range(300):
        p = draw(640, 480, config("multi-scale", sides, 1333), np.random.default_rng(seed))
        covered = (p.region[2] - p.region[0], p.region[3] - p.region[1])
        assert (p.width, p.height) == max(
            (fit_size(*covered, side, 1333) for side in sides), key=lambda s: s == (p.width, p.height)
        )
        if covered == (640, 480):
            whole_images += 1
            continue
        crops += 1
        ranges = [[side * 480 / short for side in (384, 600)] for short in (400, 500, 600)]
        for side, full in zip(covered, (640, 480), strict=True):
            assert any(min(low, full) - 2 <= side <= min(high, full) + 2 for low, high in ranges)
    assert whole_images > 100
    assert crops > 100


def test_large_scale_jitter_stays_on_its_square() -> None:
    factors = []
    for seed in range(200):
        p = draw(640, 480, config("large-scale-jitter", (1024,), 1024), np.random.default_rng(seed))
        assert max(p.width, p.height) <= 1024
        factors.append(p.width / (p.region[2] - p.region[0]) * 640 / 1024)
    assert 0.09 < min(factors) < 0.3
    assert 1.8 < max(factors) < 2.01


@pytest.mark.parametrize("size", [(1, 1), (3000, 40), (40, 3000)])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_size_are_placed(kind: Any, size: tuple[int, int]) -> None:
    annotated = AnnotatedImage(1, "none", Path("none"), *size, (instance(90, (0.0, 0.0, *map(float, size))),))
    for seed in range(10):
        placement = draw(*size, config(kind, (60, 80), 133), np.random.default_rng(seed))
        image, target = render(Image.new("RGB", size), annotated, placement)
        assert image.shape == (3, placement.height, placement.width)
        assert target["masks"].shape[1:] == image.shape[1:]
    assert max(whole(*size, 80, 133).width, whole(*size, 80, 133).height) <= 133
