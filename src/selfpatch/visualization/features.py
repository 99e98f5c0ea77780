"""Patch features of plain images, as the pictures need them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.types import Encoder
from selfpatch.models.features import patch_features

CHUNK = 16
"""Images that are encoded at once."""


def unit_patch_features(encoder: Encoder, images: Tensor) -> Tensor:
    """Patch features of length 1, so that their dot products are the cosines that positives are chosen by.

    Args:
        images: [n, C, H, W], uint8 or float32 as `ops.images.normalise` takes them.

    Returns:
        [n, h, w, D] float32 on the CPU.

    Raises:
        ValueError: the images are of another type or number of channels, or the patch size does not divide their sides.
    """
    parts = [patch_features(encoder, part).cpu() for part in images.split(CHUNK)]
    return F.normalize(torch.cat(parts), dim=-1)
