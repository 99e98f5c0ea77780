"""Gaussian blur of a batch, with a radius for each image, by three box blurs in each direction as in Pillow."""

import torch
from torch import Tensor

PASSES = 3


def gaussian_blur(levels: Tensor, radius: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Blur images; for each image and channel: round(down @ round(image @ across.T)).

    Pillow rounds after each of its six box blurs, this function after three.

    Levels are [N, C, H, W] of whole numbers in [0, 255], radii [N] float32 deviations in pixels; products use `dtype`.
    """
    height, width = levels.shape[-2:]
    across = _blurring(radius, width, dtype)
    down = across if height == width else _blurring(radius, height, dtype)
    narrow = (levels.to(dtype) @ across.mT).add_(0.5).floor_()
    return (down @ narrow).add_(0.5).floor_().clamp_(0, 255).to(levels.dtype)


def _blurring(radius: Tensor, side: int, dtype: torch.dtype) -> Tensor:
    """Return the matrices [N, 1, side, side] that blur a line by the three passes."""
    box = box_blurring(box_radius(radius), side)
    return (box @ box @ box).to(dtype)[:, None]


def box_radius(radius: Tensor) -> Tensor:
    """Return the fractional radius [...] of the box that gives a Gaussian's variance after three passes.

    Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended box filtering", 2011, as in Pillow.
    """
    variance = radius * radius / PASSES
    whole = (((12 * variance + 1).sqrt() - 1) / 2).floor()
    fraction = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    return whole + fraction


def box_blurring(radius: Tensor, side: int) -> Tensor:
    """Return the matrices [N, side, side] that blur a line once by a box; its end pixels repeat outside.

    A box of radius r weighs the pixel at distance d by clamp(r + 1 - |d|, 0, 1) / (2 r + 1). All weights up to d add up
    to clamp((d + r + 1) / (2 r + 1), 0, 1), and the weights are the differences of these sums.
    """
    radius = radius[:, None, None]
    pixels = torch.arange(side, device=radius.device)[:, None]
    edges = torch.arange(side + 1, device=radius.device)
    sums = ((edges - pixels + radius) / (2 * radius + 1)).clamp(0, 1)  # [N, side, side + 1]
    sums = torch.where(edges == 0, 0.0, torch.where(edges == side, 1.0, sums))
    return sums.diff(dim=-1)
