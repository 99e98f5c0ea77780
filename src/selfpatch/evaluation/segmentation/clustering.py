"""k-means in torch: k-means++ seeding, Lloyd's iterations, blocks of distances instead of all at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

MAX_DISTANCES = 2**24
"""That are held at once: 64 MB."""


class Clusters(NamedTuple):
    centres: Tensor  # [k, D]
    inertia: float  # sum of the squared distances to the nearest centre


def kmeans(points: Tensor, k: int, *, iterations: int, restarts: int, rng: np.random.Generator) -> Clusters:
    """The best of some runs of Lloyd's algorithm::

        centres by k-means++
        until no point changes its cluster, at most `iterations` times:
            each point joins its nearest centre
            each centre becomes the mean of its points; one without points, the point farthest from its centre

    Args:
        points: [n, D] float32.
        k: clusters.
        iterations: at most, a run.
        restarts: runs, 1 or more; that with the smallest inertia is kept.
        rng: all that is random is drawn from it.

    Raises:
        ValueError: there are fewer points than clusters.
    """
    if not 1 <= k <= len(points):
        raise ValueError(
            f"{k} clusters cannot be made of {len(points)} patches; use more images or a larger resolution"
        )
    runs = [_lloyd(points, plus_plus(points, k, rng), iterations) for _ in range(restarts)]
    return min(runs, key=lambda run: run.inertia)


def _lloyd(points: Tensor, centres: Tensor, iterations: int) -> Clusters:
    cluster, distance = nearest_centre(points, centres)
    for _ in range(iterations):
        centres = cluster_means(points, cluster, distance, len(centres))
        before = cluster
        cluster, distance = nearest_centre(points, centres)
        if torch.equal(cluster, before):
            break
    # Moved first: MPS has no float64.
    return Clusters(centres, float(distance.cpu().double().sum()))


def cluster_means(points: Tensor, cluster: Tensor, distance: Tensor, k: int) -> Tensor:
    """Means [k, D] of the points of each cluster; clusters without points get those farthest from their centres.

    Args:
        points: [n, D].
        cluster: [n] int64, of each point.
        distance: [n], of each point to its centre.
        k: clusters.
    """
    # A sum by one-hot products, not by atomic adds, whose order and so whose rounding a GPU changes from run to run.
    count = torch.bincount(cluster, minlength=k)
    total = points.new_zeros(k, points.shape[1])
    step = max(1, MAX_DISTANCES // k)
    for part, own in zip(points.split(step), cluster.split(step), strict=True):
        total += F.one_hot(own, k).to(part.dtype).T @ part
    empty = (count == 0).nonzero().flatten()
    means = total / count.clamp_min(1)[:, None]
    if len(empty):
        means[empty] = points[distance.topk(len(empty)).indices]
    return means


def nearest_centre(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """[n] int64 nearest of the [k, D] centres, and the [n] squared distances to it."""
    step = max(1, MAX_DISTANCES // len(centres))
    norms = centres.square().sum(1)
    parts = []
    for part in points.split(step):
        closest = (norms - 2 * part @ centres.T).min(1)
        parts.append((closest.indices, (closest.values + part.square().sum(1)).clamp_min(0)))
    cluster, distance = (torch.cat(found) for found in zip(*parts, strict=True))
    return cluster, distance


def plus_plus(points: Tensor, k: int, rng: np.random.Generator) -> Tensor:
    """Centres [k, D]: points drawn one after another, each with a probability that grows with the squared distance to
    the nearest centre so far (Arthur and Vassilvitskii, 2007)."""
    chosen = [int(rng.integers(len(points)))]
    distance = (points - points[chosen[0]]).square().sum(1)
    for _ in range(k - 1):
        mass = distance.cpu().double().numpy().cumsum()
        # Where all points coincide with centres there is no mass, and any point will do.
        at_random = int(rng.integers(len(points)))
        place = int(np.searchsorted(mass, rng.random() * mass[-1], side="right")) if mass[-1] > 0 else at_random
        chosen.append(min(place, len(points) - 1))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
    return points[chosen]
