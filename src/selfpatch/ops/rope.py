"""Rotary position embeddings over two axes, as DINOv3 uses them (arXiv 2508.10104, section 3.2).

For the patch in row i of h and column j of w, and a head of d channels (4 divides d):

    y, x       = 2 (i + 0.5) / h - 1,  2 (j + 0.5) / w - 1         in (-1, 1), whatever the grid
    period_k   = 100^(4 k / d),  k = 0 ... d / 4 - 1
    angles     = 2 pi (y / period_0, ..., y / period_K, x / period_0, ..., x / period_K)      d / 2 of them
    rotated    : channels c and c + d / 2 of a query or key turn by the c-th angle
"""

import math

import torch
from torch import Tensor

from selfpatch.core.reference import fast_path_of

Rotation = tuple[Tensor, Tensor]
"""Sines and cosines [N, d] of the patches' angles; both halves of d are alike."""


def rope_periods(head_dim: int, base: float = 100.0) -> Tensor:
    """Return the periods [d / 4] of a head with d channels, float32.

    Raises:
        ValueError: 4 does not divide the number of channels.
    """
    if head_dim % 4:
        raise ValueError(
            f"rotary positions need heads of a width that 4 divides, not {head_dim}; change backbone.num_heads"
        )
    return base ** (torch.arange(head_dim // 4) * (4 / head_dim))


def rope_rotation(h: int, w: int, periods: Tensor, scale: float = 1.0) -> Rotation:
    """Return sines and cosines [h * w, d] of a grid's angles, float32, row by row.

    Args:
        h: rows of patches.
        w: columns of patches.
        periods: [d / 4].
        scale: factor of all coordinates; DINOv3 draws one in training.
    """
    periods = periods.float()
    rows, columns = (
        scale * (2 * (torch.arange(side, device=periods.device) + 0.5) / side - 1)[:, None] / periods for side in (h, w)
    )  # [h, d / 4], [w, d / 4]
    angles = 2 * math.pi * torch.cat([rows[:, None].expand(-1, w, -1), columns.expand(h, -1, -1)], dim=2).flatten(0, 1)
    return angles.sin().repeat(1, 2), angles.cos().repeat(1, 2)


def rotate_patches_reference(x: Tensor, rotation: Rotation) -> Tensor:
    """Compute `rotate_patches` with one rotation matrix for each patch and pair of channels."""
    (sin, cos), half = rotation, x.shape[-1] // 2
    s, c = sin[:, :half], cos[:, :half]  # [N, d / 2]
    matrices = torch.stack([c, -s, s, c], dim=-1).unflatten(-1, (2, 2))  # [N, d / 2, 2, 2]
    prefix = x.shape[-2] - sin.shape[0]
    pairs = torch.stack([x[..., prefix:, :half], x[..., prefix:, half:]], dim=-1)  # [..., N, d / 2, 2]
    turned = torch.einsum("ncij,...ncj->...nci", matrices, pairs.to(matrices.dtype)).to(x.dtype)
    return torch.cat([x[..., :prefix, :], torch.cat(turned.unbind(-1), dim=-1)], dim=-2)


@fast_path_of(rotate_patches_reference)
def rotate_patches(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate the last N tokens of queries or keys; the class and register tokens before them stay.

    Args:
        x: [..., prefix + N, d] queries or keys of each head.
        rotation: sines and cosines [N, d] of `rope_rotation`.

    Returns:
        The same shape and dtype.
    """
    sin, cos = rotation
    prefix = x.shape[-2] - sin.shape[0]
    patches = x[..., prefix:, :]
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([x[..., :prefix, :], turned.to(x.dtype)], dim=-2)
