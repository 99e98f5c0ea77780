"""Unsupervised segmentation: patches are clustered, and clusters matched to the classes that they overlap most.

As in IIC, PiCIE and STEGO (arXiv 2203.08414): as many clusters as classes, one-to-one Hungarian matching of pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.types import Encoder
from selfpatch.data.augment.multicrop import generator
from selfpatch.evaluation.result import Output
from selfpatch.evaluation.segmentation.augmentation import resize_nearest
from selfpatch.evaluation.segmentation.clustering import kmeans, nearest_centre
from selfpatch.evaluation.segmentation.config import KMeansSegmentationConfig
from selfpatch.evaluation.segmentation.dataset import SegmentationSet
from selfpatch.evaluation.segmentation.inference import FittedMethod
from selfpatch.evaluation.segmentation.metrics import confusion
from selfpatch.evaluation.segmentation.patches import whole_features

_KMEANS_STREAM, _SAMPLE_STREAM = 2**32 + 2, 2**32 + 3


def fit_kmeans(
    encoder: Encoder, images: SegmentationSet, config: KMeansSegmentationConfig, output: Output
) -> FittedMethod:
    """Cluster the patches of the images that are scored, which are then predicted in their order; nothing is written.

    Features are computed twice rather than kept: those of a large set would fill the memory, cluster numbers do not.
    """
    num_classes = len(images.classes)
    budget = max(1, config.memory_patches // len(images))
    points = []
    for i, image, _ in images.read_all("patches to cluster", output.progress):
        features = _unit_features(encoder, image, config).flatten(0, 1)
        draws = generator(config.seed, 0, i, _SAMPLE_STREAM).random(len(features))
        points.append(features[np.sort(np.argsort(draws, kind="stable")[:budget])])
    rng = generator(config.seed, 0, 0, _KMEANS_STREAM)
    clusters = kmeans(torch.cat(points), num_classes, iterations=config.iterations, restarts=config.restarts, rng=rng)
    grids = []  # [h, w] int64 cluster of each patch
    counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    for _, image, labels in images.read_all("clusters", output.progress):
        features = _unit_features(encoder, image, config)
        cluster, _ = nearest_centre(features.flatten(0, 1), clusters.centres)
        grids.append(cluster.view(features.shape[:2]).cpu().numpy())
        counts += confusion(resize_nearest(grids[-1], labels.shape), labels, num_classes)
    class_of, remaining = match_clusters(counts.numpy()), iter(grids)

    def predict(image: Image.Image) -> Tensor:
        return torch.from_numpy(class_of[resize_nearest(next(remaining), (image.height, image.width))])

    return FittedMethod(predict, config, {"clusters": num_classes})


def _unit_features(encoder: Encoder, image: Image.Image, config: KMeansSegmentationConfig) -> Tensor:
    return F.normalize(whole_features(encoder, image, config.resolution), dim=-1)


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
