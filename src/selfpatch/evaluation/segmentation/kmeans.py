"""Unsupervised segmentation: patches are clustered, and clusters matched to the classes that they overlap most.

As in IIC, PiCIE and STEGO (arXiv 2203.08414): as many clusters as classes, one-to-one Hungarian matching of pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.types import Encoder
from selfpatch.data.augment.multicrop import generator
from selfpatch.evaluation.result import Progress
from selfpatch.evaluation.segmentation.augmentation import resize_nearest
from selfpatch.evaluation.segmentation.clustering import kmeans, nearest_centre
from selfpatch.evaluation.segmentation.config import KMeansSegmentationConfig
from selfpatch.evaluation.segmentation.dataset import SegmentationSet
from selfpatch.evaluation.segmentation.harness import FittedMethod
from selfpatch.evaluation.segmentation.metrics import confusion
from selfpatch.evaluation.segmentation.patches import whole_features

_KMEANS_STREAM, _SAMPLE_STREAM = 2**32 + 2, 2**32 + 3

Grid = tuple[np.ndarray, tuple[int, int]]
"""int64 [h, w] cluster of each patch, and the (height, width) of the image."""


def fit_kmeans(
    encoder: Encoder,
    images: SegmentationSet,
    config: KMeansSegmentationConfig,
    out: Path | None,
    progress: Progress | None,
) -> FittedMethod:
    """Cluster the patches of the images that are scored, which are then predicted in their order; `out` is unused."""
    points = _sample_patches(encoder, images, config, progress)
    rng = generator(config.seed, 0, 0, _KMEANS_STREAM)
    num_classes = len(images.classes)
    clusters = kmeans(points, num_classes, iterations=config.iterations, restarts=config.restarts, rng=rng)
    grids = _cluster_grids(encoder, images, clusters.centres, config, progress)
    class_of = match_clusters(_overlaps(images, grids))
    remaining = iter(grids)

    def predict(image: object) -> Tensor:
        grid, size = next(remaining)
        return torch.from_numpy(class_of[resize_nearest(grid, size)])

    return FittedMethod(predict, config, {"clusters": num_classes})


def match_clusters(counts: np.ndarray) -> np.ndarray:
    """Return the class of each cluster, one to one, so that as many pixels as possible are right.

    Args:
        counts: [C, K] pixels of each (class, cluster), K = C.

    Returns:
        [K] int64 class numbers.
    """
    classes, clusters = linear_sum_assignment(counts, maximize=True)
    matched = np.empty(counts.shape[1], np.int64)
    matched[clusters] = classes
    return matched


def _sample_patches(
    encoder: Encoder, images: SegmentationSet, config: KMeansSegmentationConfig, progress: Progress | None
) -> Tensor:
    """Return features [n, D] of norm 1, equally many per image, one at least."""
    budget = max(1, config.memory_patches // len(images))
    parts = []
    for i, image, _ in images.read_all("patches to cluster", progress):
        features = F.normalize(whole_features(encoder, image, config.resolution).flatten(0, 1), dim=1)
        draws = generator(config.seed, 0, i, _SAMPLE_STREAM).random(len(features))
        parts.append(features[np.sort(np.argsort(draws, kind="stable")[:budget])])
    return torch.cat(parts)


def _cluster_grids(
    encoder: Encoder,
    images: SegmentationSet,
    centres: Tensor,
    config: KMeansSegmentationConfig,
    progress: Progress | None,
) -> list[Grid]:
    # Features are computed again rather than kept: those of a large set would fill the memory, cluster numbers do not.
    grids = []
    for _, image, _ in images.read_all("clusters", progress):
        features = F.normalize(whole_features(encoder, image, config.resolution), dim=-1)
        cluster, _ = nearest_centre(features.flatten(0, 1), centres)
        grids.append((cluster.view(features.shape[:2]).cpu().numpy(), (image.height, image.width)))
    return grids


def _overlaps(images: SegmentationSet, grids: list[Grid]) -> np.ndarray:
    """Return the [C, K] pixels of each (class, cluster)."""
    num_classes = len(images.classes)
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for (grid, size), (_, _, labels) in zip(grids, images.read_all("", None), strict=True):
        counts += confusion(resize_nearest(grid, size), labels, num_classes)
    return counts.numpy()
