"""Whole images as patches: their features, their shares of classes, and a bounded sample of labelled ones."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.distributed import gather_rows
from selfpatch.core.types import Encoder
from selfpatch.data.augment.multicrop import generator
from selfpatch.evaluation.result import Progress
from selfpatch.evaluation.segmentation.augmentation import fitted_size, resize_bilinear, resize_nearest
from selfpatch.evaluation.segmentation.base_config import PatchConfig
from selfpatch.evaluation.segmentation.dataset import IGNORE, SegmentationSet
from selfpatch.evaluation.segmentation.inference import MAX_LOGITS, Predict, classes_at
from selfpatch.evaluation.sharding import share_of
from selfpatch.models.features import patch_features


def grid_of(height: int, width: int, resolution: int, patch_size: int) -> tuple[int, int]:
    """Return (h, w) in patches of an image whose short side is resized to about `resolution` pixels."""
    height, width = fitted_size(height, width, resolution)
    return max(1, round(height / patch_size)), max(1, round(width / patch_size))


def whole_features(encoder: Encoder, image: Image.Image, resolution: int) -> Tensor:
    """Return the features [h, w, D] of an image, float32 on the encoder's device; `grid_of` gives h and w."""
    h, w = grid_of(image.height, image.width, resolution, encoder.patch_size)
    pixels = torch.from_numpy(resize_bilinear(np.asarray(image), (h * encoder.patch_size, w * encoder.patch_size)))
    return patch_features(encoder, pixels.permute(2, 0, 1)[None])[0]


def patch_predictor(
    encoder: Encoder, resolution: int, scores_of: Callable[[Tensor], Tensor], *, max_logits: int = MAX_LOGITS
) -> Predict:
    """Return a function that segments an image by the scores [n, C] that `scores_of` gives its patches [n, D]."""

    def predict(image: Image.Image) -> Tensor:
        features = whole_features(encoder, image, resolution)
        scores = scores_of(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return classes_at(scores.permute(2, 0, 1)[None], (image.height, image.width), max_logits=max_logits)

    return predict


def soft_labels(label: np.ndarray, grid: tuple[int, int], patch_size: int, num_classes: int) -> Tensor:
    """Return the share of each class among the labelled pixels of each patch, as float32 [h, w, C].

    The sum over C is 1, or 0 where all pixels of the patch are void. Labels, int64 [H, W] with IGNORE, are resized to
    it.
    """
    h, w = grid
    pixels = resize_nearest(label, (h * patch_size, w * patch_size))
    patch = np.arange(h).repeat(patch_size)[:, None] * w + np.arange(w).repeat(patch_size)
    labelled = pixels != IGNORE
    cells = patch[labelled] * num_classes + pixels[labelled]
    counts = np.bincount(cells, minlength=h * w * num_classes).reshape(h, w, num_classes)
    return torch.from_numpy((counts / np.maximum(counts.sum(-1, keepdims=True), 1)).astype(np.float32))


def commonness(labels: Tensor) -> Tensor:
    """Return for each patch the sum over its classes of the number of patches that hold the class, [N].

    Labels are [N, C] shares of the classes of one image's patches.
    """
    present = (labels > 0).float()
    return present @ present.sum(0)


def choose_patches(labels: Tensor, count: int, draws: Tensor) -> Tensor:
    """Choose labelled patches of one image, rare classes first.

        score[patch] = draw[patch] * commonness[patch]
        the `count` lowest scores are kept; patches without a label never are

    Labels are [N, C] shares of the classes, draws [N] uniform in [0, 1). The indices [n] int64 are in ascending order.
    """
    score = draws * commonness(labels)
    score[labels.sum(1) == 0] = torch.inf
    chosen = score.argsort(stable=True)[: min(count, int((score < torch.inf).sum()))]
    return chosen.sort().values


def labelled_patches(
    encoder: Encoder, images: SegmentationSet, config: PatchConfig, progress: Progress, *, unit: bool
) -> tuple[Tensor, Tensor]:
    """Return features [M, D] and shares of classes [M, C] of at most `memory_patches` patches, equally many per image.

    With `unit`, features have a norm of 1. Each of several processes encodes its share, and all receive all patches.

    Raises:
        ValueError: fewer patches than images, or no patch has a label.
    """
    budget = config.memory_patches // len(images)
    if budget < 1:
        raise ValueError(
            f"memory_patches is {config.memory_patches} for {len(images)} training images; use one per image or more"
        )
    grids = (grid_of(*images.size(i), config.resolution, encoder.patch_size) for i in share_of(len(images)))
    capacity = sum(min(budget, h * w) for h, w in grids)
    features = torch.empty(capacity, encoder.dim, device=encoder.device)
    labels = torch.empty(capacity, len(images.classes), device=encoder.device)
    filled = 0
    for i, image, label in images.read_all("memory", progress):
        of_image = whole_features(encoder, image, config.resolution)
        h, w, _ = of_image.shape
        soft = soft_labels(label, (h, w), encoder.patch_size, len(images.classes)).flatten(0, 1)
        draws = torch.from_numpy(generator(config.seed, 0, i, 0).random(h * w))
        chosen = choose_patches(soft, budget, draws.float())
        rows = slice(filled, filled + len(chosen))
        of_chosen = of_image.flatten(0, 1)[chosen.to(of_image.device)]
        features[rows] = F.normalize(of_chosen, dim=1) if unit else of_chosen
        labels[rows] = soft[chosen].to(labels.device)
        filled += len(chosen)
    # Patches without a label leave rows empty. On one process these are views, no copies.
    features, labels = gather_rows([features[:filled]]), gather_rows([labels[:filled]])
    if not len(features):
        raise ValueError(f"all labels of {images.labels[0].parent} are void; there is nothing to learn from")
    return features, labels
