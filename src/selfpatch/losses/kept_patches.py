"""Means over the patches of images that are not left out, for losses between two aligned views of a region."""

import torch
from torch import Tensor

from selfpatch.losses.crop_pairs import mean_weights


def kept_patches(patches: Tensor, ignored: Tensor | None) -> Tensor:
    """Return [B, N] bool, True for each of patches [B, N, D] that is not `ignored` [B, N]; all of them if None."""
    return torch.ones_like(patches[..., 0], dtype=torch.bool) if ignored is None else ~ignored


def mean_patch(patches: Tensor, kept: Tensor) -> Tensor:
    """Return the mean [B, 1, D] of those of patches [B, N, D] that are kept [B, N]; 0 if there is none."""
    weights = kept.to(patches.dtype)
    return torch.einsum("bn,bnd->bd", weights, patches)[:, None] / weights.sum(1).clamp(min=1)[:, None, None]


def mean_over_kept(losses: Tensor, kept: Tensor) -> Tensor:
    """Return the mean [B] of the losses [B, N] of those patches that are kept [B, N]; 0 if there is none."""
    return (losses * kept).sum(1) / kept.sum(1).clamp(min=1)


def mean_over_images(losses: Tensor, kept: Tensor) -> Tensor:
    """Return the mean, a scalar, of the losses [B] of images with two or more patches kept [B, N]; 0 if there is none.

    A single patch has no relation to another one. The images are those of all processes: the result is this process's
    part, whose mean over the processes is the mean.
    """
    return (losses * mean_weights(kept.sum(1) >= 2)).sum()
