"""Views of any height and width: boxes have about the view's shape, and every renderer puts the same pixels into it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from selfpatch.config.sections import CropConfig, PairConfig
from selfpatch.data.augment.backends import BACKENDS
from selfpatch.data.augment.geometry import crop_to_image
from selfpatch.data.augment.gpu import DecodingCollator
from selfpatch.data.augment.multichannel import render_raster
from selfpatch.data.augment.multicrop import ViewRecipe, dino_views, draw_view, generator, grid_of, pair_views
from selfpatch.data.collate import stack_boxes
from selfpatch.data.decode.multichannel import Raster

SIDES = st.integers(1, 64)


@given(SIDES, SIDES, st.integers(2, 400), st.integers(2, 400), st.integers(0, 10_000))
def test_boxes_lie_in_the_image_and_have_about_the_shape_of_the_view(
    height: int, width: int, image_height: int, image_width: int, sample: int
) -> None:
    recipe = ViewRecipe((height, width), (0.05, 1.0))
    p = draw_view(recipe, (image_width, image_height), generator(0, 0, sample, 0))
    assert 0 <= p.left <= image_width - p.width
    assert 0 <= p.top <= image_height - p.height
    assert min(p.width, p.height) >= 1
    # A side is a rounded number of pixels, and a box cannot be narrower than a pixel.
    low, high = (ratio * width / height for ratio in recipe.ratio)
    assert p.width + 0.5 >= low * (p.height - 0.5) or p.width == image_width
    assert p.width - 0.5 <= high * (p.height + 0.5) or p.height == image_height


@given(SIDES, st.integers(2, 400), st.integers(2, 400), st.integers(0, 10_000))
def test_two_equal_sides_are_a_square(side: int, image_height: int, image_width: int, sample: int) -> None:
    one, two = (
        draw_view(ViewRecipe(size, (0.05, 1.0)), (image_width, image_height), generator(0, 0, sample, 0))
        for size in (side, (side, side))
    )
    assert one == two


def test_a_wide_image_turned_by_a_quarter_gives_the_same_boxes_for_a_view_turned_likewise() -> None:
    """The log of the aspect is drawn evenly on both sides of the view's own, so that neither direction is preferred."""
    wide, high = ViewRecipe((32, 64), (0.2, 1.0)), ViewRecipe((64, 32), (0.2, 1.0))
    logs = []
    for recipe, image_size in ((wide, (800, 400)), (high, (400, 800))):
        boxes = [draw_view(recipe, image_size, generator(0, 0, i, 0)) for i in range(600)]
        logs.append(np.log([p.width / p.height for p in boxes]))
    assert logs[0].mean() == pytest.approx(math.log(2), abs=0.03)
    assert logs[1].mean() == pytest.approx(-math.log(2), abs=0.03)
    assert logs[0].std() == pytest.approx(logs[1].std(), abs=0.02)


def gradient(height: int, width: int) -> Image.Image:
    """Return an image whose red is its column and whose green is its row."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    return Image.fromarray(np.stack([columns, rows, np.zeros_like(rows)], -1))


def rendered(image: Image.Image, recipe: ViewRecipe, sample: int) -> tuple[dict[str, Tensor], Tensor]:
    """Return the view [3, H, W] of every renderer, and its box [5]."""
    p = draw_view(recipe, image.size, generator(0, 0, sample, 0))
    raster = Raster.of(image)
    views = {"plain": BACKENDS["plain"].render(image, recipe.size, p)}  # type: ignore[misc]
    views["raster"] = render_raster(raster, recipe.size, p)
    if pytest.importorskip("cv2"):
        views["fast"] = BACKENDS["fast"].render(raster, recipe.size, p)  # type: ignore[misc]
    collator, boxes = DecodingCollator([recipe], 1, 0), stack_boxes([[p]])
    batch = collator.collate([collator.prepare(image, [p])], {"boxes": boxes, "samples": torch.tensor([0])})
    views["device"] = batch.to("cpu").global_crops[0, 0]
    return views, boxes[0, 0]


@pytest.mark.parametrize("sides", [(24, 48), (40, 16)])
@pytest.mark.parametrize("sample", range(4))
def test_pixels_of_every_renderer_show_the_place_that_the_box_names(sides: tuple[int, int], sample: int) -> None:
    recipe = ViewRecipe(sides, (0.3, 0.9), flip=0.5)
    views, box = rendered(gradient(180, 240), recipe, sample)
    height, width = sides
    for name, view in views.items():
        assert view.shape == (3, height, width), name
        for row, column in ((2, 2), (2, width - 3), (height - 3, 2), (height - 3, width - 3)):
            point = torch.tensor([[(column + 0.5) / width, (row + 0.5) / height]])
            expected = crop_to_image(point, box)[0] - 0.5  # a pixel's own number is where its centre is
            assert (view[:2, row, column].float() - expected).abs().max() <= 1.01, name


@pytest.mark.parametrize("sample", range(4))
def test_renderers_agree_on_a_wide_view(sample: int) -> None:
    noise = np.random.default_rng(sample).integers(0, 256, (60, 110, 3), np.uint8)
    image = Image.fromarray(noise).resize((220, 120))
    recipe = replace(dino_views(CropConfig(global_size=(32, 72)))[0], flip=0.5, solarize=0.5)
    views, _ = rendered(image, recipe, sample)
    plain = views.pop("plain").float()
    del views["raster"]  # keeps grey and saturation, as `multichannel` says
    for name, view in views.items():
        assert (view.float() - plain).abs().mean() < 1.5, name


def test_every_kind_of_crop_takes_its_size() -> None:
    crops = CropConfig(global_size=(16, 32), local_size=(8, 12), num_local=1)
    views = dino_views(crops)
    assert [view.sides for view in views] == [(16, 32), (16, 32), (8, 12)]
    pairs = PairConfig(clean_size=(16, 24), contained_size=(8, 16), num_clean=1, num_contained=1)
    assert [view.sides for view in pair_views(pairs, crops)] == [(16, 24), (8, 16)]
    assert grid_of(crops.global_size, 4) == (4, 8)
    assert grid_of(9, 4) == (2, 2)
