"""Patch features of plain images, as the pictures need them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfpatch.types import Encoder

CHUNK = 16
"""Images that are encoded at once."""


@torch.no_grad()
def unit_patch_features(encoder: Encoder, images: Tensor) -> Tensor:
    """Patch features of length 1, so that their dot products are the cosines that positives are chosen by.

    Args:
        images: uint8 [n, 3, H, W].

    Returns:
        [n, h, w, D] float32 on the CPU.

    Raises:
        ValueError: the images are not uint8 [n, 3, H, W], or the encoder's patch size does not divide their sides.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}; uint8 [n, 3, H, W] is needed")
    height, width = images.shape[-2:]
    if height % encoder.patch_size or width % encoder.patch_size:
        raise ValueError(
            f"images of {width} x {height} pixels cannot be cut into patches of {encoder.patch_size}; use a multiple"
        )
    device = _device(encoder, images)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (encoder.mean, encoder.std))
    parts = [encoder.patches((part.to(device) / 255 - mean) / std).float().cpu() for part in images.split(CHUNK)]
    return F.normalize(torch.cat(parts), dim=1).permute(0, 2, 3, 1).contiguous()


def _device(encoder: Encoder, images: Tensor) -> torch.device:
    """Where the encoder's parameters are; one that is no module, or has none, takes images where they lie."""
    parameter = next(encoder.parameters(), None) if isinstance(encoder, nn.Module) else None
    return images.device if parameter is None else parameter.device
