"""Drawn parameters of a view: DINO's distributions, from streams that depend on (seed, epoch, sample, view) alone."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp, kstest
from torchvision.transforms import ColorJitter, RandomResizedCrop

from selfpatch.config.sections import CropConfig
from selfpatch.data.augment.multicrop import ADJUSTMENTS, ViewParameters, ViewRecipe, dino_views, draw_view, generator

RECIPES = dino_views(CropConfig())
SAMPLES = 2000
PINNED = (
    44,
    2,
    415,
    371,
    False,
    (
        1.332676645699048,
        0.7801522555490665,
        0.9009664657406301,
        0.04547043751082974,
        ("contrast", "saturation", "hue", "brightness"),
    ),
    True,
    1.0599295922325247,
    False,
    "bicubic",
)


def draws(recipe: ViewRecipe, image_size: tuple[int, int] = (500, 375), view: int = 0) -> list[ViewParameters]:
    return [draw_view(recipe, image_size, generator(0, 0, sample, view)) for sample in range(SAMPLES)]


def test_dino_views_have_the_configured_sizes_and_probabilities() -> None:
    first, second, *local = RECIPES
    assert [recipe.size for recipe in RECIPES] == [224, 224] + [96] * 8
    assert [first.blur, second.blur, local[0].blur] == [1.0, 0.1, 0.5]
    assert [first.solarize, second.solarize, local[0].solarize] == [0.0, 0.2, 0.0]
    assert (first.scale, second.scale, local[0].scale) == ((0.25, 1.0), (0.25, 1.0), (0.05, 0.25))
    assert first.ratio == (3 / 4, 4 / 3)
    assert len(set(local)) == 1
    assert len(dino_views(CropConfig(num_local=0))) == 2


@pytest.mark.parametrize("image_size", [(500, 375), (90, 400), (1000, 60), (224, 224)])
@pytest.mark.parametrize("scale", [(0.25, 1.0), (0.05, 0.25)])
def test_boxes_are_distributed_as_torchvisions(image_size: tuple[int, int], scale: tuple[float, float]) -> None:
    ours = np.array([p.box[:4] for p in draws(ViewRecipe(96, scale), image_size)])
    torch.manual_seed(0)
    image = torch.empty(3, image_size[1], image_size[0])
    boxes = [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(SAMPLES)]
    theirs = np.array([(left, top, width, height) for top, left, height, width in boxes])
    for column in range(4):
        assert ks_2samp(ours[:, column], theirs[:, column]).pvalue > 1e-3
    assert ks_2samp(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]).pvalue > 1e-3
    assert ks_2samp(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3]).pvalue > 1e-3


@pytest.mark.parametrize("image_size", [(1, 1), (1, 50), (50, 1), (3, 1000), (1000, 3), (2, 2)])
def test_an_image_that_no_box_fits_gives_torchvisions_centre(image_size: tuple[int, int]) -> None:
    recipe = ViewRecipe(96, scale=(1.0, 1.0), ratio=(2.0, 2.1)) if image_size == (2, 2) else ViewRecipe(96, (1.0, 1.0))
    image = torch.empty(3, image_size[1], image_size[0])
    top, left, height, width = RandomResizedCrop.get_params(image, list(recipe.scale), list(recipe.ratio))
    assert draw_view(recipe, image_size, generator(0, 0, 0, 0)).box[:4] == (left, top, width, height)


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 2**63), st.floats(0.01, 1))
def test_boxes_lie_inside_the_image(width: int, height: int, sample: int, smallest: float) -> None:
    for ratio in [(3 / 4, 4 / 3), (5.0, 9.0)]:
        p = draw_view(ViewRecipe(8, (smallest, 1.0), ratio), (width, height), generator(0, 0, sample, 0))
        assert 0 <= p.left < p.left + p.width <= width
        assert 0 <= p.top < p.top + p.height <= height


def test_a_box_reaches_every_position_in_the_image() -> None:
    drawn = draws(ViewRecipe(8, scale=(0.25, 0.25), ratio=(1.0, 1.0)), image_size=(4, 6))
    assert {(p.width, p.height) for p in drawn} == {(2, 2)}
    assert {(p.left, p.top) for p in drawn} == set(itertools.product(range(3), range(5)))


def test_probabilities_and_ranges_are_the_recipes() -> None:
    for view, recipe in enumerate(RECIPES[:3]):
        drawn = draws(recipe, view=view)
        for name, hits in {
            "flip": [p.flip for p in drawn],
            "jitter": [p.jitter is not None for p in drawn],
            "grey": [p.grey for p in drawn],
            "blur": [p.blur_radius > 0 for p in drawn],
            "solarize": [p.solarize for p in drawn],
        }.items():
            probability = getattr(recipe.colour if name in ("jitter", "grey") else recipe, name)
            deviation = np.sqrt(probability * (1 - probability) / SAMPLES)
            assert abs(np.mean(hits) - probability) <= 4 * deviation, name
        radii = [p.blur_radius for p in drawn if p.blur_radius > 0]
        assert kstest(radii, "uniform", args=(0.1, 1.9)).pvalue > 1e-3


def test_colour_jitter_is_distributed_as_torchvisions() -> None:
    jitters = [p.jitter for p in draws(RECIPES[0]) if p.jitter is not None]
    torch.manual_seed(0)
    reference = ColorJitter(0.4, 0.4, 0.2, 0.1)
    theirs = [
        ColorJitter.get_params(reference.brightness, reference.contrast, reference.saturation, reference.hue)
        for _ in range(SAMPLES)
    ]
    for column, name in enumerate(ADJUSTMENTS, start=1):
        ours = [getattr(jitter, name) for jitter in jitters]
        assert ks_2samp(ours, [row[column] for row in theirs]).pvalue > 1e-3
    counts = dict.fromkeys(itertools.permutations(ADJUSTMENTS), 0)
    for jitter in jitters:
        counts[jitter.order] += 1
    expected = len(jitters) / 24
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 60  # chi-square, 23 degrees: p = 4e-5


def test_draws_do_not_depend_on_the_enabled_augmentations() -> None:
    full = RECIPES[0]
    plain = ViewRecipe(full.size, full.scale, flip=full.flip)
    only_blur = dataclasses.replace(plain, blur=1.0)
    for sample in range(20):
        drawn = [draw_view(r, (400, 300), generator(0, 1, sample, 0)) for r in (full, plain, only_blur)]
        assert len({p.box for p in drawn}) == 1
        assert drawn[0].blur_radius == drawn[2].blur_radius > 0


@pytest.mark.parametrize("position", range(4))
def test_every_coordinate_of_a_stream_matters(position: int) -> None:
    streams = []
    for value in [0, 1, 2, 255, 2**20, 2**32]:
        coordinates = [5, 5, 5, 5]
        coordinates[position] = value
        streams.append(generator(*coordinates).random(64))
    for first, second in itertools.combinations(streams, 2):
        assert not np.isin(first, second).any()


def test_neighbouring_streams_are_uncorrelated() -> None:
    table = np.stack([generator(0, 0, sample, view).random(36) for sample in range(200) for view in range(10)])
    assert kstest(table.ravel(), "uniform").pvalue > 1e-3
    for shift in (1, 10):  # next view, next sample
        assert abs(np.corrcoef(table[:-shift].ravel(), table[shift:].ravel())[0, 1]) < 4 / np.sqrt(table.size)


@pytest.mark.parametrize(
    ("seed", "epoch", "sample", "view"), [(0, 0, 0, 0), (-1, 3, 2**40, 2**33), (2**64 - 1, 1, 7, 9)]
)
def test_a_stream_is_philox_of_key_and_counter(seed: int, epoch: int, sample: int, view: int) -> None:
    key, counter = np.array([seed % 2**64, epoch], np.uint64), np.array([0, 0, view, sample], np.uint64)
    expected = np.random.Generator(np.random.Philox(key=key, counter=counter))
    np.testing.assert_array_equal(generator(seed, epoch, sample, view).random(100), expected.random(100))


def test_the_stream_is_pinned() -> None:
    """A run that resumes with a newer version must draw the same crops."""
    p = draw_view(RECIPES[0], (500, 375), generator(seed=7, epoch=3, sample=1234, view=1))
    assert dataclasses.astuple(p) == PINNED


def test_impossible_recipes_are_refused() -> None:
    for wrong, message in [
        ({"size": 0}, "view of 0 pixels"),
        ({"scale": (0.0, 1.0)}, "scale is"),
        ({"ratio": (2.0, 1.0)}, "ratio is"),
    ]:
        with pytest.raises(ValueError, match=message):
            ViewRecipe(**({"size": 8, "scale": (0.5, 1.0)} | wrong))
    for wrong, message in [({"hue": 0.6}, "hue is 0.6"), ({"blur_radius": (-1.0, 1.0)}, "blur_radius is")]:
        with pytest.raises(ValueError, match=message):
            CropConfig(**wrong)
