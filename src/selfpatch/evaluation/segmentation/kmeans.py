"""Unsupervised segmentation: patches are clustered, and clusters matched to the classes that they overlap most.

As in IIC, PiCIE and STEGO (arXiv 2203.08414): as many clusters as classes, one-to-one Hungarian matching of pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.types import Encoder
from selfpatch.data.augment.multicrop import generator
from selfpatch.evaluation.result import Progress, Provenance, Result
from selfpatch.evaluation.segmentation.augmentation import resize_nearest
from selfpatch.evaluation.segmentation.clustering import kmeans, nearest_centre
from selfpatch.evaluation.segmentation.dataset import IGNORE, SegmentationSet, open_dataset
from selfpatch.evaluation.segmentation.patches import EVERYTHING, whole_features
from selfpatch.evaluation.segmentation.scoring import check_at_least, score_images

_FIT, _DRAW = 2**32 + 2, 2**32 + 3


def match_clusters(counts: np.ndarray) -> np.ndarray:
    """The class of each cluster, one to one, such that as many pixels as possible are right.

    Args:
        counts: [C, K] pixels of each (class, cluster), K = C.

    Returns:
        [K] int64 class numbers.
    """
    classes, clusters = linear_sum_assignment(counts, maximize=True)
    matched = np.empty(counts.shape[1], np.int64)
    matched[clusters] = classes
    return matched


def evaluate_kmeans(
    encoder: Encoder,
    data: str | Path,
    *,
    out: str | Path | None = None,
    kind: str | None = None,
    test_split: str = "val",
    limit: int | None = None,
    memory_patches: int = 200_000,
    resolution: int = 320,
    iterations: int = 50,
    restarts: int = 3,
    seed: int = 0,
    max_pictures: int = 4,
    weights: Provenance | None = None,
    progress: Progress | None = None,
) -> Result:
    """k-means segmentation; the settings are those of `segment.evaluate`."""
    check_at_least(
        1, limit=limit, memory_patches=memory_patches, resolution=resolution, iterations=iterations, restarts=restarts
    )
    test = open_dataset(data, test_split, kind).limited(limit)
    points = _sampled(encoder, test, resolution, memory_patches, seed, progress)
    rng = generator(seed, 0, 0, _FIT)
    clusters = kmeans(points, len(test.classes), iterations=iterations, restarts=restarts, rng=rng)
    grids = _cluster_grids(encoder, test, clusters.centres, resolution, progress)
    class_of = match_clusters(_overlaps(test, grids))
    remaining = iter(grids)

    def predict(image: object) -> Tensor:
        grid, size = next(remaining)
        return torch.from_numpy(class_of[resize_nearest(grid, size, EVERYTHING)])

    scored = score_images(test, predict, out=out, max_pictures=max_pictures, progress=progress)
    settings: dict[str, Any] = {"method": "kmeans", "data": str(data), "kind": test.kind, "test_split": test_split}
    settings |= {"clusters": len(test.classes), "memory_patches": memory_patches, "resolution": resolution}
    settings |= {"iterations": iterations, "restarts": restarts, "seed": seed, "test_images": len(test)}
    return scored.result(test.classes, settings, weights)


Grid = tuple[np.ndarray, tuple[int, int]]
"""int64 [h, w] cluster of each patch, and the (height, width) of the image."""


def _sampled(
    encoder: Encoder, test: SegmentationSet, resolution: int, count: int, seed: int, progress: Progress | None
) -> Tensor:
    """[n, D] features of norm 1, as many of each image, at most `count` in all where that is one an image or more."""
    budget = max(1, count // len(test))
    parts = []
    for i in range(len(test)):
        features = F.normalize(whole_features(encoder, test.read(i)[0], resolution).flatten(0, 1), dim=1)
        draws = generator(seed, 0, i, _DRAW).random(len(features))
        parts.append(features[np.sort(np.argsort(draws, kind="stable")[:budget])])
        if progress is not None:
            progress("patches to cluster", i + 1, len(test))
    return torch.cat(parts)


def _cluster_grids(
    encoder: Encoder, test: SegmentationSet, centres: Tensor, resolution: int, progress: Progress | None
) -> list[Grid]:
    # Features are made once more rather than kept: those of a large set would fill the memory, cluster numbers do not.
    grids = []
    for i in range(len(test)):
        image, _ = test.read(i)
        features = F.normalize(whole_features(encoder, image, resolution), dim=-1)
        cluster, _ = nearest_centre(features.flatten(0, 1), centres)
        grids.append((cluster.view(features.shape[:2]).cpu().numpy(), (image.height, image.width)))
        if progress is not None:
            progress("clusters", i + 1, len(test))
    return grids


def _overlaps(test: SegmentationSet, grids: list[Grid]) -> np.ndarray:
    """[C, K] pixels of each (class, cluster)."""
    number = len(test.classes)
    counts = np.zeros(number * number, np.int64)
    for i, (grid, size) in enumerate(grids):
        label = test.read(i)[1]
        cluster = resize_nearest(grid, size, EVERYTHING)
        kept = label != IGNORE
        counts += np.bincount(label[kept] * number + cluster[kept], minlength=number * number)
    return counts.reshape(number, number)
