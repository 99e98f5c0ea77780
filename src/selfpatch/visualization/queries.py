"""Query patches of an image: those under given points, or a few that differ from each other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

SPREAD = 0.5
"""Weight of the distance in the image relative to the distance in feature space."""


def patches_at(points: Sequence[tuple[float, float]], grid: tuple[int, int]) -> list[int]:
    """Return the flat indices of the patches under points (x, y), fractions of the image's width and height.

    Raises:
        ValueError: a point lies outside the image.
    """
    h, w = grid
    for x, y in points:
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise ValueError(f"query point ({x}, {y}) is outside the image; give fractions of it between 0 and 1")
    return [min(int(y * h), h - 1) * w + min(int(x * w), w - 1) for x, y in points]


def salient_patches(features: Tensor, count: int) -> list[int]:
    """Return flat indices of patches that differ and lie apart, by farthest-point sampling (Gonzalez 1985).

    The first is the patch least like the image as a whole; each next one is the patch whose nearest chosen patch is
    farthest away, in features [h, w, D] of length 1 and in the image. Features are averaged over 3x3 patches first,
    because a single odd patch is not salient, and the outer sixth of the grid is left out where it leaves anything.
    """
    h, w, _ = features.shape
    smooth = F.avg_pool2d(features.permute(2, 0, 1)[None], 3, stride=1, padding=1, count_include_pad=False)
    smooth = F.normalize(smooth[0].flatten(1).T, dim=-1)  # [N, D]
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    positions = torch.stack([rows, columns], -1).reshape(-1, 2).double() / (h * h + w * w) ** 0.5
    top, left = (max(1, side // 6) for side in (h, w))
    inner = (rows >= top) & (rows < h - top) & (columns >= left) & (columns < w - left)
    candidates = (inner if inner.any() else torch.ones_like(inner)).flatten().nonzero().flatten()
    smooth, positions = smooth[candidates].double(), positions[candidates]

    def distance(chosen: int) -> Tensor:
        # Rounded, so that patches which differ by rounding noise tie, and the first of them is taken on every machine.
        spread = (positions - positions[chosen]).norm(dim=-1)
        return ((1 - smooth @ smooth[chosen]) + SPREAD * spread).round(decimals=6)

    chosen = [int((smooth @ smooth.mean(0)).round(decimals=6).argmin())]
    nearest = distance(chosen[0])
    while len(chosen) < min(count, len(candidates)):
        chosen.append(int(nearest.argmax()))
        nearest = nearest.minimum(distance(chosen[-1]))
    return candidates[chosen].tolist()
