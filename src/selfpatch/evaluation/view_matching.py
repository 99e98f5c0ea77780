"""View matching, a metric of dense features without labels: the share of patches that are found in another view.

Two views of an image are cropped, flipped and coloured differently. Where they overlap, their boxes give the position
of one view corresponds to which of the other. Good features have their nearest neighbour at that position.
"""

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
from selfpatch.ops.images import to_common_dtype


class ViewPairs(NamedTuple):
    """Two views of each of n images."""

    views_a: Tensor  # [n, C, S, S], uint8 or float32
    views_b: Tensor
    boxes_a: Tensor  # float32 [n, 5] (left, top, width, height, flipped) in pixels of the image
    boxes_b: Tensor


def make_view_pairs(images: Sequence[Picture], recipes: tuple[ViewRecipe, ViewRecipe], *, seed: int = 0) -> ViewPairs:
    """Draw and render two views of each image, all of one size; they depend on the arguments only."""
    views: list[list[Tensor]] = [[], []]
    boxes: list[list[tuple[float, ...]]] = [[], []]
    for sample, image in enumerate(images):
        for view, recipe in enumerate(recipes):
            drawn = draw_view(recipe, image.size, generator(seed, 0, sample, view))
            views[view].append(render(image, recipe.size, drawn))
            boxes[view].append(drawn.box)
    views_a, views_b = (torch.stack(to_common_dtype(crops)) for crops in views)
    boxes_a, boxes_b = (torch.tensor(b, dtype=torch.float32) for b in boxes)
    return ViewPairs(views_a, views_b, boxes_a, boxes_b)


def view_matching(
    encoder: Encoder, views_a: Tensor, views_b: Tensor, boxes_a: Tensor, boxes_b: Tensor, *, batch: int = 32
) -> float:
    """Return the share of correct matches among the patches whose true position lies in the second view.

    Views and boxes are as in `ViewPairs`; `batch` pairs are encoded at once.

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
    """Return which patches of the first view are matched correctly in the second.

    ::

        for each patch i of view a:
            target  = the centre of i, mapped to the image and from there to the patch grid of view b
            inside  = target lies in view b
            match   = the patch j of view b with the largest cosine(i, j)
            correct = inside and |centre(j) - target| <= 1 patch along both axes

    Features are [n, h, w, D] of the first views and [n, p, q, D] of the second, of any norm. Boxes are [n, 5] (left,
    top, width, height, flipped) in pixels of the image. `correct` and `inside` are returned, bool [n, h*w].
    """
    h, w = features_b.shape[1:3]
    grid = torch.tensor([w, h], device=boxes_b.device)
    centres_a, centres_b = (_patch_centres(*f.shape[1:3]).to(boxes_a.device) for f in (features_a, features_b))
    targets = image_to_crop(crop_to_image(centres_a, boxes_a), boxes_b)  # [n, h*w, 2], in [0, 1] where inside
    inside = ((targets >= 0) & (targets <= 1)).all(-1)
    a, b = (F.normalize(f.flatten(1, 2), dim=-1) for f in (features_a, features_b))
    match = (a @ b.transpose(1, 2)).argmax(-1).to(boxes_a.device)  # [n, h*w]
    distance = ((centres_b[match] - targets) * grid).abs().amax(-1)
    # Boxes are float32, so a distance of exactly one patch may be longer by a rounding error.
    return inside & (distance <= 1 + 1e-4), inside


def _patch_centres(h: int, w: int) -> Tensor:
    """Return the centres [h*w, 2] (x, y) of patches in crop coordinates, 0 to 1, row by row."""
    x, y = torch.from_numpy((np.arange(w) + 0.5) / w), torch.from_numpy((np.arange(h) + 0.5) / h)
    return torch.cartesian_prod(y, x).flip(-1).float()
