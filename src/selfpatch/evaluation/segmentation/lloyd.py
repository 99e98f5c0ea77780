"""k-means by Lloyd's algorithm, in blocks of bounded memory."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.reference import fast_path_of
from selfpatch.core.text import counted

MAX_DISTANCES = 2**24
"""Distances that exist at once: 64 MB."""
MAX_DISTANCES_CPU = 2**19
"""Distances that exist at once on a CPU: 2 MB, which its caches hold until they are reduced."""


class Clusters(NamedTuple):
    """Centres of the clusters, and how well they fit."""

    centres: Tensor  # [k, D]
    inertia: float  # sum of the squared distances to the nearest centre


def kmeans(
    points: Tensor,
    k: int,
    *,
    iterations: int,
    restarts: int,
    rng: np.random.Generator,
    init: Literal["plus_plus", "random"] = "plus_plus",
    on_iteration: Callable[[int], None] = lambda done: None,
) -> Clusters:
    """Return the best of several runs of Lloyd's algorithm.

        centres by k-means++, or points drawn at random without replacement
        until no point changes its cluster, at most `iterations` times:
            each point joins its nearest centre
            each centre becomes the mean of its points; one without points becomes the point farthest from its centre

    Args:
        points: [n, D] float32.
        k: number of clusters.
        iterations: largest number of iterations per run.
        restarts: number of runs, at least 1; the one with the smallest inertia is kept.
        rng: generator of all random numbers.
        init: choice of the first centres; FAISS draws them at random.
        on_iteration: called with the number of iterations done, of `restarts * iterations`; those that a run does not
            need, because it has converged, count as done.

    Raises:
        ValueError: there are fewer points than clusters.
    """
    if not 1 <= k <= len(points):
        raise ValueError(
            f"{counted(k, 'cluster')} cannot be made of {counted(len(points), 'patch')}; use fewer clusters, more "
            "images or a larger resolution"
        )
    runs = []
    for number in range(restarts):
        first = plus_plus(points, k, rng) if init == "plus_plus" else points[rng.permutation(len(points))[:k]]

        def tell(done: int, before: int = number * iterations) -> None:
            on_iteration(before + done)

        runs.append(_lloyd(points, first, iterations, tell))
    return min(runs, key=lambda run: run.inertia)


def _lloyd(points: Tensor, centres: Tensor, iterations: int, on_iteration: Callable[[int], None]) -> Clusters:
    lengths = torch.linalg.vector_norm(points, dim=1).square()
    cluster, distance = nearest_centre(points, centres, lengths)
    for done in range(iterations):
        on_iteration(done)
        old, before = centres, cluster
        centres = cluster_means(points, cluster, distance, len(centres))
        cluster, distance = reassign(points, old, centres, cluster, distance, lengths)
        if torch.equal(cluster, before):
            break
    on_iteration(iterations)
    # Moved to the CPU first, because MPS has no float64.
    return Clusters(centres, float(distance.cpu().double().sum()))


def cluster_means(points: Tensor, cluster: Tensor, distance: Tensor, k: int) -> Tensor:
    """Return the means [k, D] of the points [n, D] of each cluster; an empty one gets a point farthest from its centre.

    `cluster` is the [n] int64 cluster of each point, `distance` its [n] squared distance to the centre.
    """
    count = torch.bincount(cluster, minlength=k)
    empty = (count == 0).nonzero().flatten()
    means = cluster_sums(points, cluster, k) / count.clamp_min(1)[:, None]
    if len(empty):
        means[empty] = points[distance.topk(len(empty)).indices]
    return means


def cluster_sums_reference(points: Tensor, cluster: Tensor, k: int) -> Tensor:
    """Return the sum [k, D] of the points [n, D] of each cluster, by products with one-hot rows.

    On a GPU, the order and therefore the rounding of atomic adds would change from run to run.
    """
    total = points.new_zeros(k, points.shape[1])
    step = max(1, MAX_DISTANCES // k)
    for part, numbers in zip(points.split(step), cluster.split(step), strict=True):
        total += F.one_hot(numbers, k).to(part.dtype).T @ part
    return total


@fast_path_of(cluster_sums_reference)
def cluster_sums(points: Tensor, cluster: Tensor, k: int) -> Tensor:
    """Return what `cluster_sums_reference` does; a CPU adds each point once, in their order."""
    if points.device.type != "cpu":
        return cluster_sums_reference(points, cluster, k)
    return points.new_zeros(k, points.shape[1]).index_add_(0, cluster, points)


def reassign_reference(
    points: Tensor, old: Tensor, new: Tensor, cluster: Tensor, distance: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Return `nearest_centre` of the new centres [k, D], given what it returned for the old ones."""
    return nearest_centre(points, new, lengths)


@fast_path_of(reassign_reference)
def reassign(
    points: Tensor, old: Tensor, new: Tensor, cluster: Tensor, distance: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """Return what `reassign_reference` does up to ties; a CPU compares fewer pairs (Kaukoranta et al., 2000).

        for each point:
            closest = the nearest of the centres that moved
            if closest is no farther than the point's centre was:  no other is nearer
            else if the point's centre did not move:               it stays the nearest
            else:                                                  compare with the others too

    After a few iterations most of hundreds of centres stay where they are.
    """
    moved = (new != old).any(1)
    if points.device.type != "cpu" or moved.all():
        return nearest_centre(points, new, lengths)
    if not moved.any():
        return cluster, distance
    movers, others = moved.nonzero().flatten(), (~moved).nonzero().flatten()
    nearest, closest = nearest_centre(points, new[movers], lengths)
    lost = moved[cluster]
    left = (lost & (closest > distance)).nonzero().flatten()
    joins = lost | (closest < distance)
    cluster, distance = torch.where(joins, movers[nearest], cluster), torch.where(joins, closest, distance)
    nearest, closest = nearest_centre(points[left], new[others], lengths[left])
    nearer = closest < distance[left]
    cluster[left[nearer]], distance[left[nearer]] = others[nearest[nearer]], closest[nearer]
    return cluster, distance


def nearest_centre(points: Tensor, centres: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the [n] int64 nearest of the [k, D] centres, and the [n] squared distances to them.

    `lengths` are the [n] squared lengths of the points, if they are known.
    """
    lengths = torch.linalg.vector_norm(points, dim=1).square() if lengths is None else lengths
    norms = centres.square().sum(1)
    parts = points.split(_rows_at_once(points, len(centres)))
    found = [torch.addmm(norms, part, centres.T, alpha=-2).min(1) for part in parts]
    distance = torch.cat([closest.values for closest in found]) + lengths
    return torch.cat([closest.indices for closest in found]), distance.clamp_min(0)


def squared_distance(points: Tensor, centre: Tensor) -> Tensor:
    """Return the squared distances [n] of points [n, D] to one centre [D]."""
    parts = points.split(_rows_at_once(points, points.shape[1]))
    return torch.cat([torch.linalg.vector_norm(part - centre, dim=1).square() for part in parts])


def _rows_at_once(points: Tensor, columns: int) -> int:
    return max(1, (MAX_DISTANCES_CPU if points.device.type == "cpu" else MAX_DISTANCES) // columns)


def plus_plus(points: Tensor, k: int, rng: np.random.Generator) -> Tensor:
    """Return initial centres [k, D] by k-means++ (Arthur and Vassilvitskii, 2007).

    Draw points in turn, with probability proportional to the squared distance to the nearest centre.
    """
    chosen = [int(rng.integers(len(points)))]
    distance = squared_distance(points, points[chosen[0]])
    for _ in range(k - 1):
        mass = distance.cpu().double().numpy().cumsum()
        # If all points coincide with centres there is no mass, and any point will do.
        at_random = int(rng.integers(len(points)))
        index = int(np.searchsorted(mass, rng.random() * mass[-1], side="right")) if mass[-1] > 0 else at_random
        chosen.append(min(index, len(points) - 1))
        distance = torch.minimum(distance, squared_distance(points, points[chosen[-1]]))
    return points[chosen]
