"""Foreground of an image: the patches to which the class token attends most (Leopart, arXiv 2204.13101)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfpatch.ops.rope import Rotation, rotate_patches

FULL = 1 - 1e-5
"""Share of a point that lies in the foreground from which on it counts as whole, but for rounding."""
BLUR_RADIUS, BLUR_SIGMA = 3, 0.6


def class_attention(projected: Tensor, rotation: Rotation | None = None) -> Tensor:
    """Return the attention of the class token, the first one, to all tokens, [B, H, n] float32.

    Args:
        projected: [B, n, 3, H, d] queries, keys and values of tokens, patches last.
        rotation: rotation of the patches' keys; the class token has none.
    """
    with torch.autocast(projected.device.type, enabled=False):
        query, key, _ = projected.float().transpose(1, 3).unbind(2)  # [B, H, n, d]
        if rotation is not None:
            key = rotate_patches(key, rotation)
        return (query[:, :, :1] * query.shape[-1] ** -0.5 @ key.mT).softmax(-1)[:, :, 0]


def attended_patches(attention: Tensor, mass: float = 0.6) -> Tensor:
    """Return the patches that hold most of the attention, [B, h, w] bool, as Leopart's released code does.

        blur the mean over the heads by a Gaussian of deviation 0.6, in a window of 7 patches, reflected at the border
        remove patches, the least attended first, until 1 - mass of the attention is gone
        remove components of fewer than 3 patches, of which one touches the next, also at a corner

    Nothing waits for the device.

    Args:
        attention: [B, H, h, w] attention of the class token of each head, not negative.
        mass: share of the attention that is kept.
    """
    with torch.autocast(attention.device.type, enabled=False):  # whose convolutions would round the order away
        blurred = _blur(attention.float().mean(1))
    values, order = blurred.flatten(1).sort(1)
    kept = values.cumsum(1) / values.sum(1, keepdim=True) > 1 - mass
    mask = torch.empty_like(kept).scatter_(1, order, kept).view_as(blurred)
    return without_small_components(mask)


def without_small_components(mask: Tensor) -> Tensor:
    """Remove components of one or two cells from masks [B, h, w] bool; cells also touch at corners.

    A cell is in one of them if it has no neighbour, or a single one that has no other neighbour.
    """
    degree = _sum_of_neighbours(mask.float()) * mask
    alone = degree == 0
    in_pair = (degree == 1) & (_sum_of_neighbours(degree) == 1)
    return mask & ~alone & ~in_pair


def _sum_of_neighbours(x: Tensor) -> Tensor:
    kernel = torch.ones(1, 1, 3, 3, device=x.device)
    kernel[..., 1, 1] = 0
    return F.conv2d(x[:, None], kernel, padding=1)[:, 0]


def _blur(x: Tensor) -> Tensor:
    """Blur maps [B, h, w]; the window shrinks where a side has too few cells to reflect."""
    h, w = x.shape[1:]
    for side, across in ((w, True), (h, False)):
        radius = min(BLUR_RADIUS, side - 1)
        distances = torch.arange(-radius, radius + 1, device=x.device)
        kernel = torch.exp(-0.5 * (distances / BLUR_SIGMA) ** 2)
        kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
        pad = (radius, radius, 0, 0) if across else (0, 0, radius, radius)
        padded = F.pad(x[:, None], pad, mode="reflect")
        x = F.conv2d(padded, kernel if across else kernel.mT)[:, 0]
    return x
