"""Geometry of matches between two views, and the share of those that are right.

Two views of an image are cropped, flipped and coloured differently. Where they overlap, their boxes give the position
of one view that corresponds to a position of the other. Good features have their nearest neighbour there.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.text import counted
from selfpatch.data.augment.geometry import crop_to_image, image_to_crop
from selfpatch.ops.knn import rows_at_once

MAX_DISTANCE = 1 + 1e-4
"""Largest distance of a right match along either axis, in patches. Boxes are float32, so that a distance of exactly one
patch may be longer by a rounding error."""


class PatchMatches(NamedTuple):
    """Matches of the N = h * w patches of n first views, on the CPU."""

    correct: Tensor  # bool [n, N]; only patches that are inside can be correct
    inside: Tensor  # bool [n, N]: the true position lies in the second view, so that the patch counts
    chance: Tensor  # float32 [n, N]: share of the second view's patches that would be correct
    matches: Tensor  # int64 [n, N]: matched patch of the second view
    targets: Tensor  # float32 [n, N, 2] (x, y): true position in the second view, in [0, 1] where inside


def match_patches(features_a: Tensor, features_b: Tensor, boxes_a: Tensor, boxes_b: Tensor) -> PatchMatches:
    """Match the patches of the first views to their nearest neighbours in the second ones.

    ::

        for each patch i of view a:
            target  = the centre of i, mapped to the image and from there to the patch grid of view b
            inside  = target lies in view b
            match   = the patch j of view b with the largest cosine(i, j)
            correct = inside and |centre(j) - target| <= 1 patch along both axes

    Features are [n, h, w, D] of the first views and [n, p, q, D] of the second, of any norm. Boxes are [n, 5] (left,
    top, width, height, flipped) in pixels of the image, on the CPU.
    """
    p, q = features_b.shape[1:3]
    centres_a, centres_b = (_patch_centres(*features.shape[1:3]) for features in (features_a, features_b))
    targets = image_to_crop(crop_to_image(centres_a, boxes_a), boxes_b)  # [n, N, 2]
    inside = ((targets >= 0) & (targets <= 1)).all(-1)
    matches = _nearest(features_a.flatten(1, 2), features_b.flatten(1, 2)).cpu()
    grid = torch.tensor([q, p])
    distance = ((centres_b[matches] - targets) * grid).abs().amax(-1)
    columns, rows = (_num_near(targets[..., axis], count) for axis, count in enumerate((q, p)))
    return PatchMatches(inside & (distance <= MAX_DISTANCE), inside, rows * columns / (p * q), matches, targets)


def _nearest(features_a: Tensor, features_b: Tensor) -> Tensor:
    """Return the index [n, N] of the most similar of the features [n, M, D] for each of the features [n, N, D]."""
    unit_a, unit_b = (F.normalize(features, dim=-1) for features in (features_a, features_b))
    pairs_at_once = rows_at_once(unit_a.shape[1] * unit_b.shape[1])
    blocks = zip(unit_a.split(pairs_at_once), unit_b.split(pairs_at_once), strict=True)
    return torch.cat([(a @ b.transpose(1, 2)).argmax(-1) for a, b in blocks])


def _num_near(targets: Tensor, count: int) -> Tensor:
    """Return how many of `count` patches along one axis are near enough to positions [n, N] in [0, 1]."""
    return ((_centres(count) - targets[..., None]).abs() * count <= MAX_DISTANCE).sum(-1).float()


def _patch_centres(h: int, w: int) -> Tensor:
    """Return the centres [h*w, 2] (x, y) of patches in crop coordinates, 0 to 1, row by row."""
    return torch.cartesian_prod(_centres(h), _centres(w)).flip(-1)


def _centres(count: int) -> Tensor:
    return torch.from_numpy((np.arange(count) + 0.5) / count).float()


class MatchCounts(NamedTuple):
    """Numbers of patches of one image, or of several."""

    correct: int
    inside: int
    """Patches that count, because their true position lies in the second view."""
    by_chance: float
    """Expected number of correct patches if each is matched at random."""


def count_matches(matches: PatchMatches) -> list[MatchCounts]:
    """Return the counts of each pair of views."""
    correct, inside = (flags.sum(1).tolist() for flags in (matches.correct, matches.inside))
    by_chance = (matches.chance.double() * matches.inside).sum(1).tolist()
    return [MatchCounts(*counts) for counts in zip(correct, inside, by_chance, strict=True)]


def total_counts(counts: list[MatchCounts]) -> MatchCounts:
    """Return the counts of all pairs of views together.

    Raises:
        ValueError: no patch of any first view lies in its second view.
    """
    total = MatchCounts(*(sum(values) for values in zip(*counts, strict=True)))
    if not total.inside:
        raise ValueError(
            f"no two views of an image overlap ({counted(len(counts), 'pair')}); use more images or larger crops"
        )
    return total
