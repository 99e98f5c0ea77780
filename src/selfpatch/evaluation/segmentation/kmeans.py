"""Unsupervised segmentation: patches are clustered, and clusters matched to the classes that they overlap most.

As in IIC, PiCIE and STEGO (arXiv 2203.08414): as many clusters as classes, one-to-one Hungarian matching of pixels.
Overclustering, as in Leopart (arXiv 2204.13101) and NeCo (arXiv 2408.11054): more clusters than classes, each of the
class that it fits best.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.distributed import all_reduce_sum, gather_rows
from selfpatch.core.text import counted
from selfpatch.core.types import Encoder
from selfpatch.data.augment.multicrop import generator
from selfpatch.evaluation.degenerate import check_degenerate, check_patches
from selfpatch.evaluation.encoders import dense_encoder
from selfpatch.evaluation.lazy_image import LazyImage
from selfpatch.evaluation.result import Output
from selfpatch.evaluation.segmentation.augmentation import resize_nearest
from selfpatch.evaluation.segmentation.config import KMeansSegmentationConfig
from selfpatch.evaluation.segmentation.dataset import IGNORE, SegmentationSet
from selfpatch.evaluation.segmentation.inference import FittedMethod
from selfpatch.evaluation.segmentation.lloyd import kmeans, nearest_centre
from selfpatch.evaluation.segmentation.matching import classes_of_clusters
from selfpatch.evaluation.segmentation.metrics import confusion
from selfpatch.evaluation.segmentation.patches import PatchView
from selfpatch.evaluation.segmentation.projection import fit_projection

EMPTY_CLUSTERS = (
    "clusters have no patch, as if fewer patches differed than there are clusters; use fewer clusters or more images, "
    "and check the weights"
)
FEW_DIRECTIONS = (
    "features vary in fewer directions than they are reduced to, so that some components are constant; use fewer "
    "components or more images, and check the weights"
)
_KMEANS_STREAM, _SAMPLE_STREAM, _SUBSET_STREAM = 2**32 + 2, 2**32 + 3, 2**32 + 4


def fit_kmeans(
    encoder: Encoder, images: SegmentationSet, config: KMeansSegmentationConfig, output: Output
) -> FittedMethod:
    """Cluster the patches of the images that are scored, which are then predicted in their order; nothing is written.

        for each image:  mean and covariance of its features      (if they are standardised or reduced)
        for each image:  its features, as they are clustered      (kept if they are reduced)
        for each seed:   k-means of a sample of all features
        for each image:  the nearest centre of each of its patches, for each seed
        each cluster takes a class, for each seed

    Features are computed again in each loop rather than kept, to save memory. Each of several processes encodes its
    share of the images, and all cluster the patches of all.

    Raises:
        ValueError: as for `count_clusters`, or there are fewer patches than clusters.
    """
    num_classes = len(images.classes)
    num_clusters = count_clusters(config, num_classes)
    encoder, view, notes = dense_encoder(encoder, config), PatchView.of(config), list[str]()
    transform = _transform(encoder, view, images, config, output, notes)
    budget = None if config.memory_patches is None else max(1, config.memory_patches // len(images))
    sampled, kept = list[Tensor](), list[Tensor]()
    for i, image in images.share("patches to cluster", output.progress):
        raw = view.features(encoder, image)
        check_patches(raw, images.names[i])
        features = transform(raw)  # [h, w, d]
        points, draws = features.flatten(0, 1), generator(config.seed, 0, i, _SAMPLE_STREAM).random
        few = budget is None or len(points) <= budget
        sampled.append(points if few else points[np.sort(np.argsort(draws(len(points)), kind="stable")[:budget])])
        if config.components is not None:
            kept.append(features)
    centres = _centres(gather_rows(sampled), num_clusters, config, output)
    del sampled
    grids = []  # [R, h, w] int64 cluster of each patch, of each of R clusterings
    counts = torch.zeros(config.seeds, num_classes, num_clusters, dtype=torch.int64)
    patches = torch.zeros(config.seeds, num_clusters, dtype=torch.int64)
    for number, (_, image, labels) in enumerate(images.labelled_share("clusters", output.progress)):
        features = kept[number] if kept else transform(view.features(encoder, image))
        cluster = torch.stack([nearest_centre(features.flatten(0, 1), of_run)[0] for of_run in centres])
        patches += torch.stack([torch.bincount(of_run, minlength=num_clusters) for of_run in cluster.cpu()])
        grids.append(cluster.unflatten(1, features.shape[:2]).cpu().numpy())
        labels = view.reduced_labels(labels, encoder.patch_size)
        of_patches = pixels_of_patches(labels, features.shape[:2], num_classes)
        for of_run, found in zip(counts, cluster.cpu(), strict=True):
            of_run.index_add_(1, found, of_patches)
    counts, patches = all_reduce_sum(counts), all_reduce_sum(patches)
    check_degenerate(EMPTY_CLUSTERS, (patches == 0).any())
    class_of = [classes_of_clusters(of_run.numpy(), config.matching) for of_run in counts]
    remaining = iter(grids)

    def predict(image: LazyImage) -> Tensor:
        size = view.scored_size(image.height, image.width, encoder.patch_size)
        pairs = zip(class_of, next(remaining), strict=True)
        return torch.from_numpy(np.stack([classes[resize_nearest(grid, size)] for classes, grid in pairs]))

    def reduce_labels(labels: np.ndarray) -> np.ndarray:
        return view.reduced_labels(labels, encoder.patch_size)

    facts = {"clusters": num_clusters}
    return FittedMethod(predict, config, facts, reduce_labels, notes, runs=config.seeds)


def pixels_of_patches(labels: np.ndarray, grid: Sequence[int], num_classes: int) -> Tensor:
    """Return the number of pixels of each class in each patch, int64 [C, h*w].

    Patches of a grid (h, w) are enlarged to the labels [H, W] by `resize_nearest`, so that clusters of patches have the
    counts of enlarged clusters.
    """
    num_patches = math.prod(grid)
    patches = resize_nearest(np.arange(num_patches).reshape(*grid), labels.shape)
    return confusion(patches, labels, num_classes, num_patches)


def count_clusters(config: KMeansSegmentationConfig, num_classes: int) -> int:
    """Return the number of clusters for a number of classes, among which may be that of void (ImageNet-S).

    Raises:
        ValueError: one-to-one matching is asked for with another number of clusters than classes.
    """
    if num_classes > IGNORE:
        num_classes -= 1
    num_clusters = config.num_clusters or num_classes
    if config.matching.startswith("one_to_one") and num_clusters != num_classes:
        raise ValueError(
            f"num_clusters is {num_clusters} for {counted(num_classes, 'class')}, but matching {config.matching} needs "
            "as many; leave it out, or set matching to precision"
        )
    return num_clusters


def _transform(
    encoder: Encoder,
    view: PatchView,
    images: SegmentationSet,
    config: KMeansSegmentationConfig,
    output: Output,
    notes: list[str],
) -> Callable[[Tensor], Tensor]:
    """Return a function of features [h, w, D] that returns them as they are clustered, [h, w, d]."""
    if config.features == "unit" and config.components is None:
        return lambda features: F.normalize(features, dim=-1)
    components = config.components
    if components is not None and components > encoder.dim:
        notes.append(f"components is {components}, but features have {counted(encoder.dim, 'dimension')}: all are kept")
        components = encoder.dim

    def raw(features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1) if config.features == "unit" else features

    blocks = (
        raw(view.features(encoder, image)).flatten(0, 1)
        for _, image in images.share("statistics of features", output.progress)
    )
    projection = fit_projection(blocks, encoder.dim, components, standardise=config.features == "standardised")
    check_degenerate(FEW_DIRECTIONS, projection.rank < (components or 0))
    return lambda features: projection(raw(features))


def _centres(points: Tensor, num_clusters: int, config: KMeansSegmentationConfig, output: Output) -> list[Tensor]:
    """Return the centres [K, d] of each clustering of points [n, d]."""
    centres = []
    for number in range(config.seeds):
        seed, subset = config.seed + number, points
        if config.points_per_cluster is not None and len(points) > config.points_per_cluster * num_clusters:
            order = generator(seed, 0, 0, _SUBSET_STREAM).permutation(len(points))
            subset = points[order[: config.points_per_cluster * num_clusters]]
        rng, each = generator(seed, 0, 0, _KMEANS_STREAM), config.restarts * config.iterations

        def tell(done: int, before: int = number * each, total: int = config.seeds * each) -> None:
            output.progress("k-means", before + done, total)

        found = kmeans(
            subset, num_clusters, iterations=config.iterations, restarts=config.restarts, rng=rng, init=config.init,
            on_iteration=tell,
        )  # fmt: skip
        centres.append(found.centres)
    return centres
