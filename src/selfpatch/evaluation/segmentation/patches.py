"""Whole images as patches: their features, and how much of each class a patch holds."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfpatch.core.types import Encoder
from selfpatch.evaluation.segmentation.augmentation import fitted_size, resize_bilinear, resize_nearest
from selfpatch.evaluation.segmentation.dataset import IGNORE
from selfpatch.models.features import patch_features

LONG_OVER_SHORT = 4
"""The long side is at most so many times `resolution`, as in mmsegmentation's (2048, 512)."""
EVERYTHING = (slice(None), slice(None))


def grid_of(height: int, width: int, resolution: int, patch_size: int) -> tuple[int, int]:
    """(h, w) in patches of an image whose short side is resized to about `resolution` pixels, rounded to whole
    patches."""
    height, width = fitted_size(height, width, resolution, LONG_OVER_SHORT * resolution)
    return max(1, round(height / patch_size)), max(1, round(width / patch_size))


def whole_features(encoder: Encoder, image: Image.Image, resolution: int) -> Tensor:
    """[h, w, D] float32 on the encoder's device; the grid is `grid_of` its size."""
    grid = grid_of(image.height, image.width, resolution, encoder.patch_size)
    size = (grid[0] * encoder.patch_size, grid[1] * encoder.patch_size)
    pixels = torch.from_numpy(resize_bilinear(np.asarray(image), size, EVERYTHING))
    return patch_features(encoder, pixels.permute(2, 0, 1)[None])[0]


def soft_labels(label: np.ndarray, grid: tuple[int, int], patch_size: int, num_classes: int) -> Tensor:
    """The share of each class among the labelled pixels of each patch.

    Args:
        label: int64 [H, W] with IGNORE; resized to the grid's pixels (nearest).
        grid: (h, w) in patches.
        patch_size: side of a patch.
        num_classes: C.

    Returns:
        [h, w, C] float32; the sum over C is 1, or 0 where all pixels of the patch are void.
    """
    h, w = grid
    pixels = resize_nearest(label, (h * patch_size, w * patch_size), EVERYTHING)
    patch = np.arange(h).repeat(patch_size)[:, None] * w + np.arange(w).repeat(patch_size)
    labelled = pixels != IGNORE
    places = patch[labelled] * num_classes + pixels[labelled]
    counts = np.bincount(places, minlength=h * w * num_classes).reshape(h, w, num_classes)
    return torch.from_numpy((counts / np.maximum(counts.sum(-1, keepdims=True), 1)).astype(np.float32))
