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
        images: [..., C, H, W] uint8, or float in 0..255.

    Returns:
        [..., C, H, W] float32.
    """
    shape = (-1, 1, 1)
    mean_tensor = torch.tensor(mean, device=images.device).view(shape)
    std_tensor = torch.tensor(std, device=images.device).view(shape)
    return (images.float() / 255 - mean_tensor) / std_tensor
