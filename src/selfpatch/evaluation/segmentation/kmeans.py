"""Unsupervised segmentation: patches are clustered, and clusters matched to the classes that they overlap most.

As in IIC, PiCIE and STEGO (arXiv 2203.08414): as many clusters as classes, one-to-one Hungarian matching of pixels.
Overclustering, as in Leopart (arXiv 2204.13101): more clusters than classes, each of the class that it fits best.
"""

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.distributed import all_reduce_sum, gather_rows
from selfpatch.core.types import Encoder
from selfpatch.data.augment.multicrop import generator
from selfpatch.evaluation.encoders import dense_encoder
from selfpatch.evaluation.result import Output
from selfpatch.evaluation.segmentation.augmentation import resize_nearest
from selfpatch.evaluation.segmentation.config import KMeansSegmentationConfig
from selfpatch.evaluation.segmentation.dataset import SegmentationSet
from selfpatch.evaluation.segmentation.inference import FittedMethod
from selfpatch.evaluation.segmentation.matching import classes_of_clusters
from selfpatch.evaluation.segmentation.metrics import confusion
from selfpatch.evaluation.segmentation.patches import PatchView

_KMEANS_STREAM, _SAMPLE_STREAM = 2**32 + 2, 2**32 + 3
MAX_DISTANCES = 2**24
"""Distances that exist at once: 64 MB."""


def fit_kmeans(
    encoder: Encoder, images: SegmentationSet, config: KMeansSegmentationConfig, output: Output
) -> FittedMethod:
    """Cluster the patches of the images that are scored, which are then predicted in their order; nothing is written.

    Features are computed twice rather than kept, to save memory. Each of several processes encodes its share of the
    images, and all cluster the patches of all.

    Raises:
        ValueError: as for `count_clusters`.
    """
    num_classes = len(images.classes)
    num_clusters = count_clusters(config, num_classes)
    encoder = dense_encoder(encoder, config)
    budget = None if config.memory_patches is None else max(1, config.memory_patches // len(images))
    points = []
    for i, image, _ in images.read_all("patches to cluster", output.progress):
        features = _unit_features(encoder, image, config).flatten(0, 1)
        draws = generator(config.seed, 0, i, _SAMPLE_STREAM).random(len(features))
        points.append(features[np.sort(np.argsort(draws, kind="stable")[:budget])])
    rng = generator(config.seed, 0, 0, _KMEANS_STREAM)
    clusters = kmeans(
        gather_rows(points), num_clusters, iterations=config.iterations, restarts=config.restarts, rng=rng
    )
    grids = []  # [h, w] int64 cluster of each patch
    counts = torch.zeros(num_classes, num_clusters, dtype=torch.int64)
    for _, image, labels in images.read_all("clusters", output.progress):
        features = _unit_features(encoder, image, config)
        cluster, _ = nearest_centre(features.flatten(0, 1), clusters.centres)
        grids.append(cluster.view(features.shape[:2]).cpu().numpy())
        counts += confusion(resize_nearest(grids[-1], labels.shape), labels, num_classes, num_clusters)
    class_of = classes_of_clusters(all_reduce_sum(counts).numpy(), config.matching)
    remaining = iter(grids)

    def predict(image: Image.Image) -> Tensor:
        return torch.from_numpy(class_of[resize_nearest(next(remaining), (image.height, image.width))])

    return FittedMethod(predict, config, {"clusters": num_clusters})


def count_clusters(config: KMeansSegmentationConfig, num_classes: int) -> int:
    """Return the number of clusters for a number of classes.

    Raises:
        ValueError: one-to-one matching is asked for with another number of clusters than classes.
    """
    num_clusters = config.num_clusters or num_classes
    if config.matching == "one_to_one" and num_clusters != num_classes:
        raise ValueError(
            f"num_clusters is {num_clusters} for {num_classes} classes, but matching one_to_one needs as many; "
            "leave it out, or set matching to precision"
        )
    return num_clusters


def _unit_features(encoder: Encoder, image: Image.Image, config: KMeansSegmentationConfig) -> Tensor:
    return F.normalize(PatchView.of(config).features(encoder, image), dim=-1)


class Clusters(NamedTuple):
    """Centres of the clusters, and how well they fit."""

    centres: Tensor  # [k, D]
    inertia: float  # sum of the squared distances to the nearest centre


def kmeans(points: Tensor, k: int, *, iterations: int, restarts: int, rng: np.random.Generator) -> Clusters:
    """Return the best of several runs of Lloyd's algorithm.

        centres by k-means++
        until no point changes its cluster, at most `iterations` times:
            each point joins its nearest centre
            each centre becomes the mean of its points; one without points becomes the point farthest from its centre

    Args:
        points: [n, D] float32.
        k: number of clusters.
        iterations: largest number of iterations per run.
        restarts: number of runs, at least 1; the one with the smallest inertia is kept.
        rng: generator of all random numbers.

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
    # Moved to the CPU first, because MPS has no float64.
    return Clusters(centres, float(distance.cpu().double().sum()))


def cluster_means(points: Tensor, cluster: Tensor, distance: Tensor, k: int) -> Tensor:
    """Return the means [k, D] of the points [n, D] of each cluster; an empty one gets a point farthest from its centre.

    `cluster` is the [n] int64 cluster of each point, `distance` its [n] squared distance to the centre.
    """
    # One-hot products instead of atomic adds, whose order and therefore rounding changes from run to run on a GPU.
    count = torch.bincount(cluster, minlength=k)
    total = points.new_zeros(k, points.shape[1])
    step = max(1, MAX_DISTANCES // k)
    for part, numbers in zip(points.split(step), cluster.split(step), strict=True):
        total += F.one_hot(numbers, k).to(part.dtype).T @ part
    empty = (count == 0).nonzero().flatten()
    means = total / count.clamp_min(1)[:, None]
    if len(empty):
        means[empty] = points[distance.topk(len(empty)).indices]
    return means


def nearest_centre(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Return the [n] int64 nearest of the [k, D] centres, and the [n] squared distances to them."""
    step = max(1, MAX_DISTANCES // len(centres))
    norms = centres.square().sum(1)
    parts = []
    for part in points.split(step):
        closest = (norms - 2 * part @ centres.T).min(1)
        parts.append((closest.indices, (closest.values + part.square().sum(1)).clamp_min(0)))
    cluster, distance = (torch.cat(found) for found in zip(*parts, strict=True))
    return cluster, distance


def plus_plus(points: Tensor, k: int, rng: np.random.Generator) -> Tensor:
    """Return initial centres [k, D] by k-means++ (Arthur and Vassilvitskii, 2007).

    Draw points in turn, with probability proportional to the squared distance to the nearest centre.
    """
    chosen = [int(rng.integers(len(points)))]
    distance = (points - points[chosen[0]]).square().sum(1)
    for _ in range(k - 1):
        mass = distance.cpu().double().numpy().cumsum()
        # If all points coincide with centres there is no mass, and any point will do.
        at_random = int(rng.integers(len(points)))
        index = int(np.searchsorted(mass, rng.random() * mass[-1], side="right")) if mass[-1] > 0 else at_random
        chosen.append(min(index, len(points) - 1))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
    return points[chosen]
