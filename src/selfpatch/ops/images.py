"""Images as tensors on a device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(image / 255 - mean) / std, channel by channel.

    Args:
        images: [..., C, H, W] uint8.
        mean, std: C numbers each.

    Returns:
        [..., C, H, W] float32.

    Raises:
        ValueError: the images are not uint8, or have another number of channels than mean and std.
    """
    if images.dtype != torch.uint8 or images.ndim < 3 or not images.shape[-3] == len(mean) == len(std):
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}; "
            f"uint8 [..., {len(mean)}, H, W] is needed for {len(mean)} means"
        )
    shift, scale = (torch.tensor(v, dtype=torch.float32, device=images.device).view(-1, 1, 1) for v in (mean, std))
    return (images / 255 - shift) / scale
