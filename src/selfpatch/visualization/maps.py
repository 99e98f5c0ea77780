"""Images and patch maps as picture panels: enlarging, heat over an image, crops around the border."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from selfpatch.visualization.colour import viridis

Box = tuple[int, int, int, int]
"""(left, top, right, bottom), right and bottom excluded, as Pillow has it."""

DARKEST, BRIGHTEST = 0.02, 0.98
"""Quantiles of a channel of more than 8 bits that are drawn black and white."""
HEAT_OPACITY = 0.72
HEAT_QUANTILE = 0.02


def to_image(pixels: Tensor) -> Image.Image:
    """Any image [C, H, W] as RGB: its first three channels, or its first in grey where there are but one or two.

    8 bits are drawn as they are. What is deeper seldom reaches its white: each channel is stretched by itself from its
    2 % to its 98 % quantile.
    """
    drawn = pixels[: 3 if len(pixels) >= 3 else 1].cpu()
    if drawn.dtype != torch.uint8:
        drawn = _stretched(drawn)
    return Image.fromarray(drawn.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def _stretched(pixels: Tensor) -> Tensor:
    """[C, H, W] float -> uint8."""
    # NumPy's quantiles, as torch's refuse more than 16 million values.
    low, high = torch.from_numpy(np.quantile(pixels.numpy(), [DARKEST, BRIGHTEST], axis=(1, 2)))[:, :, None, None]
    return ((pixels - low) / (high - low).clamp(min=1e-12) * 255).clamp(0, 255).round().to(torch.uint8)


def patch_map(colours: Tensor, size: tuple[int, int]) -> Image.Image:
    """uint8 [h, w, 3], a colour a patch -> an image of (width, height) in which patches keep their sharp edges."""
    return Image.fromarray(colours.numpy()).resize(size, Image.Resampling.NEAREST)


def heat_range(heat: Tensor) -> tuple[float, float]:
    """The values that a heat map draws darkest and brightest; the lowest few share the darkest colour."""
    return float(heat.float().quantile(HEAT_QUANTILE)), float(heat.max())


def heat_over(image: Image.Image, heat: Tensor, scale: tuple[float, float]) -> Image.Image:
    """Lays a map [h, w] over an image, whose own colours are taken out so that hue means the map alone.

    The map is interpolated bilinearly between the patches' centres, as a field that is sampled there.
    """
    low, high = scale
    relative = (heat.cpu().numpy().astype(np.float32) - low) / max(high - low, 1e-6)
    smooth = Image.fromarray(relative.clip(0, 1)).resize(image.size, Image.Resampling.BILINEAR)
    grey = np.asarray(image.convert("L"), dtype=np.float32)[..., None]
    mixed = HEAT_OPACITY * viridis(np.asarray(smooth)) + (1 - HEAT_OPACITY) * grey
    return Image.fromarray(mixed.round().astype(np.uint8))


def torus_crop(image: Image.Image, box: Box) -> Image.Image:
    """The crop, continued at the opposite side where it leaves the image."""
    pixels: NDArray[np.uint8] = np.asarray(image)
    left, top, right, bottom = box
    rows = np.arange(top, bottom) % image.height
    columns = np.arange(left, right) % image.width
    return Image.fromarray(pixels[rows[:, None], columns[None, :]])
