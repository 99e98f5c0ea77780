"""Patch features as colours: their principal components, and similarity maps over an image."""

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
LOW, HIGH = 0.01, 0.99
"""Quantiles of a component that become 0 and 255, so that a few extreme patches do not flatten all others."""
NOISE = 1e-5
"""A component whose deviation is below this share of the features' size is rounding noise and is drawn grey."""
GREY = 128


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
    return float(similarity.float().quantile(0.02)), float(similarity.max())


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


def pca_colours(features: Tensor) -> Tensor:
    """Colour patches [n, h, w, D] by their first three principal components: [n, h, w, 3] uint8 on the CPU.

    All images share one basis, so that colours compare across them. The signs are fixed (the largest loading of a
    component is positive), so that equal features give equal pictures. A component that does not vary is mid-grey in
    its channel. Non-finite patches stay out of the fit and are black.

    Raises:
        ValueError: `features` is not [n, h, w, D].
    """
    if features.ndim != 4:
        raise ValueError(f"features have shape {list(features.shape)}; patch features [n, h, w, D] are needed")
    return _colours(features.detach().cpu().double().flatten(0, -2)).reshape(*features.shape[:3], 3)


def principal_components(x: Tensor, count: int = 3) -> tuple[Tensor, Tensor]:
    """Return the coordinates [M, count] of rows x [M, D] on their principal components, and the deviations [count].

    Both are zero for components beyond D.
    """
    centred = x - x.mean(0)
    variances, directions = torch.linalg.eigh(centred.mT @ centred / len(x))  # ascending
    variances, directions = variances.flip(0)[:count], directions.flip(1)[:, :count]
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    coordinates = centred @ (directions * largest.sign())
    missing = (0, count - len(variances))
    return F.pad(coordinates, missing), F.pad(variances.clamp(min=0).sqrt(), missing)


def _colours(x: Tensor) -> Tensor:
    """Return [M, 3] uint8 of [M, D]."""
    finite = x.isfinite().all(-1)
    colours = torch.zeros(len(x), 3, dtype=torch.uint8)
    if not finite.any():
        return colours
    coordinates, deviations = principal_components(x[finite])
    size = x[finite].square().sum(-1).mean().sqrt()
    for i, (values, deviation) in enumerate(zip(coordinates.mT, deviations, strict=True)):
        channel = _stretch(values) if deviation > NOISE * size else torch.full_like(values, GREY)
        colours[finite, i] = channel.round().to(torch.uint8)
    return colours


def _stretch(values: Tensor) -> Tensor:
    """Return values with their quantiles LOW and HIGH at 0 and 255."""
    low, high = values.quantile(LOW), values.quantile(HIGH)
    if high <= low:  # nearly all patches are equal: only the few that differ span the range
        low, high = values.min(), values.max()
    return ((values - low) / (high - low)).clamp(0, 1) * 255


def patch_map(colours: Tensor, size: tuple[int, int]) -> Image.Image:
    """Enlarge uint8 [h, w, 3], one colour a patch, to an image of (width, height) in which patches keep sharp edges."""
    return Image.fromarray(colours.numpy()).resize(size, Image.Resampling.NEAREST)
