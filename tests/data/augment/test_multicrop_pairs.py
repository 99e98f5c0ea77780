"""Clean crops and the crops inside them: where they lie, and what is drawn for them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfpatch.config.sections import CropConfig, PairConfig
from selfpatch.data.augment.multicrop import ViewRecipe, draw_view, draw_views, generator, pair_views, view_groups

PAIRS = PairConfig(num_clean=2, clean_size=32, clean_scale=(0.3, 0.9), num_contained=3, contained_size=16)


@given(st.integers(2, 900), st.integers(2, 900), st.integers(0, 2**40))
def test_contained_crops_lie_inside_their_clean_crop(width: int, height: int, sample: int) -> None:
    drawn = draw_views(pair_views(PAIRS, CropConfig()), (width, height), partial(generator, 0, 0, sample), 100)
    clean, contained = drawn[:2], drawn[2:]
    for i, crop in enumerate(contained):
        around = clean[i % 2]
        assert around.left <= crop.left <= crop.left + crop.width <= around.left + around.width <= width
        assert around.top <= crop.top <= crop.top + crop.height <= around.top + around.height <= height


def test_contained_areas_are_fractions_of_the_clean_crop() -> None:
    recipes = pair_views(PAIRS, CropConfig())
    for sample in range(50):
        clean, _, contained, *_ = draw_views(recipes, (4000, 3000), partial(generator, 0, 0, sample))
        share = contained.width * contained.height / (clean.width * clean.height)
        assert 0.05 - 1e-3 < share < 0.4 + 1e-3
        assert 0.3 - 1e-3 < clean.width * clean.height / 12e6 < 0.9 + 1e-3


def test_clean_crops_keep_their_colours_and_contained_ones_are_augmented_as_local_crops() -> None:
    crops = CropConfig(blur=(1.0, 0.1, 0.3), solarize=(0.0, 0.2, 0.0), resampling="bilinear")
    clean, _, contained, *_ = pair_views(PAIRS, crops)
    assert (clean.colour.jitter, clean.colour.grey, clean.blur, clean.solarize) == (0, 0, 0, 0)
    assert (replace(contained.colour, num_local=8), contained.blur, contained.solarize) == (crops, 0.3, 0.0)
    assert {clean.flip, contained.flip} == {crops.flip}
    assert {clean.resampling, contained.resampling} == {"bilinear"}


def test_each_view_is_drawn_from_its_own_stream() -> None:
    recipes = pair_views(PAIRS, CropConfig())
    drawn = draw_views(recipes, (300, 200), partial(generator, 5, 1, 7), 40)
    assert drawn[1] == draw_view(recipes[1], (300, 200), generator(5, 1, 7, 41))
    shorter = draw_views(recipes[:3], (300, 200), partial(generator, 5, 1, 7), 40)
    assert drawn[:3] == shorter


def test_groups_without_views_are_left_out() -> None:
    pairs = pair_views(PAIRS, CropConfig())
    groups = view_groups((), pair_recipes=pairs)
    assert {name: len(group) for name, group in groups.items()} == {"clean_crops": 2, "contained_crops": 3}
    with pytest.raises(ValueError, match="num_global is 0; use 1 or more, at most the number of recipes, 0"):
        view_groups((), 0)
    with pytest.raises(ValueError, match=r"contained views of sizes \[16, 16, 32\] do not fit into one batch"):
        view_groups((), pair_recipes=(*pairs[:4], ViewRecipe(32, (0.1, 0.2), inside=0)))
