"""Matches between two surfaces, and the share of those that are near enough (Probe3D, arXiv 2404.08636)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.evaluation.geometric_correspondence.config import NAVIConfig, Selection
from selfpatch.evaluation.geometric_correspondence.dataset import Pair
from selfpatch.evaluation.geometric_correspondence.views import Surface
from selfpatch.evaluation.result import Cell
from selfpatch.ops.knn import nearest_neighbours

BIN = 30
"""Width of the bins of angles in the table, in degrees."""


class Matches(NamedTuple):
    """Numbers of matched points among the object's points of the first and of the second view, int64 [m]."""

    first: Tensor
    second: Tensor


class ScoredPair(NamedTuple):
    """Recalls of one pair by the names of their metrics, and the angle between its views in degrees."""

    name: str
    angle: float
    recalls: dict[str, float]
    by_position: dict[str, float]


def match_features(first: Tensor, second: Tensor, *, count: int, selection: Selection) -> Matches:
    """Match the points of the first view to their nearest neighbours in the second, and keep the best matches.

    ::

        for each point of the first view:
            d1, d2 = cosine distances to the nearest and the second nearest point of the second view
            weight = 1 - d1 / d2, or 1 - d1 if the selection is cosine
        the `count` matches of the largest weight, those with the lower number among equals

    Features are [a, D] and [b, D] of any norm, with a, b >= 1.
    """
    similarity, index = nearest_neighbours(first, F.normalize(second, dim=1), min(2, len(second)))
    weights = similarity[:, 0]
    if selection == "ratio":
        distances = (1 - similarity).clamp(min=1e-9)
        weights = 1 - distances[:, 0] / distances[:, -1]
    kept = weights.argsort(descending=True, stable=True)[:count]
    return Matches(kept, index[kept, 0])


def match_positions(first: Surface, second: Surface, *, count: int) -> Matches:
    """Match points evenly spread over the first view to the nearest position in the square of the second."""
    cells_a, cells_b = (surface.mask.nonzero().double() for surface in (first, second))
    kept = torch.linspace(0, len(cells_a) - 1, min(count, len(cells_a))).round().long()
    return Matches(kept, torch.cat([torch.cdist(block, cells_b).argmin(1) for block in cells_a[kept].split(256)]))


def recalls(matches: Matches, surfaces: tuple[Surface, Surface], pair: Pair, config: NAVIConfig) -> dict[str, float]:
    """Return the share of matches whose points are near each other, in centimetres and in pixels of the second view.

    ::

        R, t = pose of the second camera relative to the first
        error = |R p + t - q| for a point p of the first view matched to q of the second
    """
    _, q, moved = matched_points(matches, surfaces, pair)
    centimetres = 100 * (moved - q).norm(dim=1)
    pixels = (surfaces[1].project(moved) - surfaces[1].project(q)).norm(dim=1)
    found = {f"recall@{limit:g}cm": float((centimetres < limit).double().mean()) for limit in config.centimetres}
    found["recall"] = float(np.mean([*found.values()]))
    return found | {f"recall@{limit:g}px": float((pixels < limit).double().mean()) for limit in config.pixels}


def matched_points(matches: Matches, surfaces: tuple[Surface, Surface], pair: Pair) -> tuple[Tensor, Tensor, Tensor]:
    """Return matched points [m, 3] of both views in their cameras, and those of the first in the second's camera."""
    p, q = (surface.points[surface.mask][index.cpu()] for surface, index in zip(surfaces, matches, strict=True))
    first, second = pair
    rotation = second.rotation @ first.rotation.T
    translation = second.translation - rotation @ first.translation
    moved = p.double() @ torch.from_numpy(rotation).T + torch.from_numpy(translation)
    return p.double(), q.double(), moved


def mean_recalls(scored: Sequence[ScoredPair]) -> dict[str, float]:
    """Return the means over pairs, with those of the baseline."""
    names = scored[0].recalls
    means = {name: float(np.mean([one.recalls[name] for one in scored])) for name in names}
    position = {
        f"baseline:position {name}": float(np.mean([one.by_position[name] for one in scored])) for name in names
    }
    return means | position


def angle_rows(scored: Sequence[ScoredPair], config: NAVIConfig) -> list[dict[str, Cell]]:
    """Return one row for each range of angles that has a pair; the last one includes its upper end."""
    rows: list[dict[str, Cell]] = []
    last = max(0, int(-(-config.max_angle // BIN)) - 1)
    for number in range(last + 1):
        chosen = [one for one in scored if min(int(one.angle // BIN), last) == number]
        if chosen:
            row: dict[str, Cell] = {"angle": f"{BIN * number} to {BIN * (number + 1)}", "pairs": len(chosen)}
            names = ["recall", *(f"recall@{limit:g}cm" for limit in config.centimetres)]
            rows.append(row | {name: float(np.mean([one.recalls[name] for one in chosen])) for name in names})
    return rows
