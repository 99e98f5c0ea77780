"""Pairs of views of images: drawn as global crops in pre-training are, read and rendered in batches."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from selfpatch.data.augment.multicrop import ViewRecipe, draw_view, generator
from selfpatch.data.augment.pillow import render
from selfpatch.data.decode.pillow import Picture
from selfpatch.data.images import OnBad, read_each
from selfpatch.data.sources.index import ImageIndex
from selfpatch.evaluation.view_matching.config import ViewMatchingConfig
from selfpatch.ops.images import to_common_dtype

Recipes = tuple[ViewRecipe, ViewRecipe]


class ViewPairs(NamedTuple):
    """Two views of each of n images."""

    views_a: Tensor  # [n, C, S, S'], uint8 or float32
    views_b: Tensor
    boxes_a: Tensor  # float32 [n, 5] (left, top, width, height, flipped) in pixels of the image
    boxes_b: Tensor

    def split(self, size: int) -> "list[ViewPairs]":
        """Return batches of at most `size` pairs."""
        return [ViewPairs(*parts) for parts in zip(*(tensor.split(size) for tensor in self), strict=True)]


def view_recipes(config: ViewMatchingConfig) -> Recipes:
    """Return the recipes of both views: those of the two global crops of a run with these settings."""
    crop = ViewRecipe(
        config.resolution, config.global_scale, flip=config.flip, resampling=config.resampling, colour=config
    )
    first, second = (
        replace(crop, blur=blur, solarize=solarize) for blur, solarize in zip(config.blur, config.solarize, strict=True)
    )
    return first, second


def render_pair(image: Picture, recipes: Recipes, *, seed: int, number: int) -> ViewPairs:
    """Draw and render two views of one size; the draws depend on the seed, the image's number and its size only."""
    drawn = [draw_view(recipe, image.size, generator(seed, 0, number, view)) for view, recipe in enumerate(recipes)]
    view_a, view_b = (render(image, recipe.size, one)[None] for recipe, one in zip(recipes, drawn, strict=True))
    box_a, box_b = (torch.tensor([one.box], dtype=torch.float32) for one in drawn)
    return ViewPairs(view_a, view_b, box_a, box_b)


def join_pairs(pairs: Sequence[ViewPairs]) -> ViewPairs:
    """Return pairs of views of one size as one batch."""
    views_a, views_b, boxes_a, boxes_b = zip(*pairs, strict=True)
    common_a, common_b = (torch.cat(to_common_dtype(views)) for views in (views_a, views_b))
    return ViewPairs(common_a, common_b, torch.cat(boxes_a), torch.cat(boxes_b))


def load_pairs(
    index: ImageIndex,
    indices: np.ndarray,
    recipes: Recipes,
    *,
    seed: int = 0,
    channels: int = 3,
    first: int = 0,
    on_bad: OnBad | None = None,
) -> tuple[np.ndarray, ViewPairs]:
    """Read images, and draw and render two views of each.

    Args:
        index: the images.
        indices: [n] int64, those to read.
        recipes: the distribution of each view.
        seed: seed of the draws.
        channels: channels of an image.
        first: number of the first image, from which the others are counted; an image's number decides its draws.
        on_bad: called for each unreadable image.

    Returns:
        The positions [m] in `indices` of the images that could be read, and their pairs. NoneReadable is raised if
        there are none.
    """

    def convert(image: Picture, position: int) -> tuple[int, ViewPairs]:
        return position, render_pair(image, recipes, seed=seed, number=first + position)

    _, loaded = read_each(index, indices, channels, convert, on_bad)
    positions, pairs = zip(*loaded, strict=True)
    return np.array(positions, np.int64), join_pairs(pairs)
