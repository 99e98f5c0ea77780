"""Pairs of views: those of pre-training, the same whatever else is read with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from selfpatch.config.sections import CropConfig
from selfpatch.data.augment.multicrop import ViewRecipe, dino_views, draw_view, generator
from selfpatch.data.images import NoneReadable
from selfpatch.data.sources.index import ImageIndex
from selfpatch.evaluation.view_matching.config import ViewMatchingConfig
from selfpatch.evaluation.view_matching.dataset import join_pairs, load_pairs, render_pair, view_recipes
from tests.evaluation.view_matching.conftest import smooth_pictures

CROPS = ViewRecipe(size=32, scale=(0.3, 0.8), flip=0.5)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"global_scale": (0.4, 0.9), "brightness": 0.2, "hue": 0.0, "resampling": "bilinear", "flip": 1.0},
        {"grey": 0.7, "jitter": 0.3, "blur_radius": (0.5, 1.0), "blur": (0.3, 0.9), "solarize": (0.8, 0.1)},
    ],
)
def test_views_are_the_global_crops_of_pre_training(settings: dict[str, object]) -> None:
    recipes = view_recipes(ViewMatchingConfig(resolution=48, **settings))  # type: ignore[arg-type]
    three = {name: (*settings[name], 0.5) for name in ("blur", "solarize") if name in settings}  # type: ignore[misc]
    of_a_run = dino_views(CropConfig(global_size=48, **{**settings, **three}))[:2]  # type: ignore[arg-type]
    for view, (recipe, expected) in enumerate(zip(recipes, of_a_run, strict=True)):
        assert recipe.size == expected.size
        for sample in range(50):
            drawn = (draw_view(one, (90, 60), generator(1, 0, sample, view)) for one in (recipe, expected))
            assert next(drawn) == next(drawn)


def test_pairs_depend_on_seed_and_number_alone(pictures: Path) -> None:
    index = ImageIndex.open(pictures)
    (pictures / "3.png").write_bytes(b"no image")
    read, pairs = load_pairs(index, np.array([1, 3, 4]), (CROPS, CROPS), seed=3, first=5)
    assert read.tolist() == [0, 2]
    images = smooth_pictures()
    expected = join_pairs([render_pair(images[i], (CROPS, CROPS), seed=3, number=n) for i, n in ((1, 5), (4, 7))])
    assert all(torch.equal(x, y) for x, y in zip(pairs, expected, strict=True))
    assert pairs.views_a.shape == (2, 3, 32, 32)
    assert not torch.equal(pairs.boxes_a, pairs.boxes_b)
    _, other = load_pairs(index, np.array([1, 4]), (CROPS, CROPS), seed=4, first=5)
    assert not torch.equal(other.boxes_a, pairs.boxes_a)


def test_boxes_of_whole_images(pictures: Path) -> None:
    whole = ViewRecipe(size=32, scale=(1.0, 1.0), ratio=(9 / 8, 9 / 8))
    _, pairs = load_pairs(ImageIndex.open(pictures), np.array([0]), (whole, whole))
    assert pairs.boxes_a.tolist() == pairs.boxes_b.tolist() == [[0, 0, 90, 80, 0]]
    assert torch.equal(pairs.views_a, pairs.views_b)


def test_batches_join_again(pictures: Path) -> None:
    _, pairs = load_pairs(ImageIndex.open(pictures), np.arange(5), (CROPS, CROPS))
    parts = pairs.split(2)
    assert [len(part.views_a) for part in parts] == [2, 2, 1]
    assert all(torch.equal(x, y) for x, y in zip(join_pairs(parts), pairs, strict=True))


def test_no_readable_image(pictures: Path) -> None:
    index = ImageIndex.open(pictures)
    (pictures / "3.png").write_bytes(b"no image")
    with pytest.raises(NoneReadable, match=r"no image can be read \(1 tried\)"):
        load_pairs(index, np.array([3]), (CROPS, CROPS))
