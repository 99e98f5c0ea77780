"""A meter of dense features that needs no labels: do the patches of one view find themselves in another view?

Two views of an image are cropped, flipped and coloured differently. Where they overlap, the boxes tell which place of
one is which place of the other; features are good in so far as the nearest feature in the other view lies there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.types import Encoder
from selfpatch.data.augment.geometry import crop_to_image, image_to_crop
from selfpatch.data.augment.multicrop import ViewRecipe, draw_view, generator
from selfpatch.data.augment.pillow import render
from selfpatch.data.decode.pillow import Picture
from selfpatch.models.features import patch_features
from selfpatch.ops.images import one_depth


class ViewPairs(NamedTuple):
    """Two views of each of n images."""

    views_a: Tensor
    """[n, C, S, S], uint8 or float32."""
    views_b: Tensor
    boxes_a: Tensor
    """[n, 5] float32 (left, top, width, height, flipped) in pixels of the image."""
    boxes_b: Tensor


def make_view_pairs(images: Sequence[Picture], recipes: tuple[ViewRecipe, ViewRecipe], *, seed: int = 0) -> ViewPairs:
    """Draws and renders two views of each image, the same ones whenever it is called.

    Args:
        images: whole images, upright, of one number of channels.
        recipes: of the first and of the second view; of one size.
        seed: of the draws.
    """
    views: list[list[Tensor]] = [[], []]
    boxes: list[list[tuple[float, ...]]] = [[], []]
    for sample, image in enumerate(images):
        for view, recipe in enumerate(recipes):
            drawn = draw_view(recipe, image.size, generator(seed, 0, sample, view))
            views[view].append(render(image, recipe.size, drawn))
            boxes[view].append(drawn.box)
    views_a, views_b = (torch.stack(one_depth(crops)) for crops in views)
    boxes_a, boxes_b = (torch.tensor(b, dtype=torch.float32) for b in boxes)
    return ViewPairs(views_a, views_b, boxes_a, boxes_b)


def view_matching(
    encoder: Encoder, views_a: Tensor, views_b: Tensor, boxes_a: Tensor, boxes_b: Tensor, *, batch: int = 32
) -> float:
    """Of the patches of the first view whose true place lies in the second, the share that is matched right.

    See `matching_hits`, which counts; the arguments are those of `ViewPairs`, and `batch` pairs are encoded at once.

    Raises:
        ValueError: no patch of any first view lies in its second view.
    """
    hits = candidates = 0
    for a, b, box_a, box_b in zip(*(x.split(batch) for x in (views_a, views_b, boxes_a, boxes_b)), strict=True):
        correct, inside = matching_hits(patch_features(encoder, a), patch_features(encoder, b), box_a, box_b)
        hits, candidates = hits + int(correct.sum()), candidates + int(inside.sum())
    if candidates == 0:
        raise ValueError(f"none of the {len(views_a)} pairs of views overlap; use more images or larger crops")
    return hits / candidates


def matching_hits(features_a: Tensor, features_b: Tensor, boxes_a: Tensor, boxes_b: Tensor) -> tuple[Tensor, Tensor]:
    """Which patches of the first view find themselves in the second::

        for each patch i of view a:
            place   = the centre of i, carried to the image and from there to the patch grid of view b
            inside  = place lies in view b
            match   = the patch j of all of view b with the largest cosine(i, j)
            correct = inside and |centre(j) - place| <= 1 patch, both across and down

    Args:
        features_a: [n, h, w, D] patch features of the first views, of any norm.
        features_b: [n, p, q, D] of the second views.
        boxes_a: [n, 5] (left, top, width, height, flipped) in pixels of the image.
        boxes_b: [n, 5].

    Returns:
        correct and inside, bool [n, h*w].
    """
    h, w = features_b.shape[1:3]
    grid = torch.tensor([w, h], device=boxes_b.device)
    centres_a, centres_b = (_patch_centres(*f.shape[1:3]).to(boxes_a.device) for f in (features_a, features_b))
    places = image_to_crop(crop_to_image(centres_a, boxes_a), boxes_b)  # [n, h*w, 2], in [0, 1] where inside
    inside = ((places >= 0) & (places <= 1)).all(-1)
    a, b = (F.normalize(f.flatten(1, 2), dim=-1) for f in (features_a, features_b))
    match = (a @ b.transpose(1, 2)).argmax(-1).to(boxes_a.device)  # [n, h*w]
    distance = ((centres_b[match] - places) * grid).abs().amax(-1)
    # Boxes are float32 pixels: a distance of exactly one patch may come out a rounding error longer.
    return inside & (distance <= 1 + 1e-4), inside


def _patch_centres(h: int, w: int) -> Tensor:
    """[h*w, 2] (x, y) in crop coordinates, 0 to 1, row by row."""
    x, y = torch.from_numpy((np.arange(w) + 0.5) / w), torch.from_numpy((np.arange(h) + 0.5) / h)
    return torch.cartesian_prod(y, x).flip(-1).float()
