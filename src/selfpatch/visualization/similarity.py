"""Similarity maps: the cosine of one patch's features to those of every patch, as colours over the image."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.types import Encoder
from selfpatch.models.features import patch_features

BATCH = 16
"""Number of images that are encoded at once."""
OPACITY = 0.72
"""Share of the map's colours in the picture; the rest is the image in grey."""
LOW_QUANTILE = 0.02


def unit_patch_features(encoder: Encoder, images: Tensor) -> Tensor:
    """Return the patch features [n, h, w, D] of images [n, C, H, W], of length 1, float32 and on the CPU.

    Their dot products are the cosines that positives are chosen by.

    Raises:
        ValueError: the images are of another type or number of channels, or the patch size does not divide their sides.
    """
    parts = [patch_features(encoder, part).cpu() for part in images.split(BATCH)]
    return F.normalize(torch.cat(parts), dim=-1)


def similarity_range(similarity: Tensor) -> tuple[float, float]:
    """Return the values drawn darkest and brightest; the lowest 2 % of the patches share the darkest colour."""
    return float(similarity.float().quantile(LOW_QUANTILE)), float(similarity.max())


def similarity_over(image: Image.Image, similarity: Tensor, scale: tuple[float, float]) -> Image.Image:
    """Lay a map [h, w] over an image, which turns grey so that hue means similarity alone.

    The map is interpolated bilinearly between the centres of the patches, as a field sampled there.
    """
    from matplotlib import colormaps

    low, high = scale
    relative = (similarity.cpu().numpy().astype(np.float32) - low) / max(high - low, 1e-6)
    smooth = Image.fromarray(relative.clip(0, 1)).resize(image.size, Image.Resampling.BILINEAR)
    colours = 255 * colormaps["viridis"](np.asarray(smooth))[..., :3]
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    return Image.fromarray((OPACITY * colours + (1 - OPACITY) * grey).round().astype(np.uint8))
