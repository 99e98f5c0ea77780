"""Encoders without a network: what an evaluation gives to plain colours, the rows to beat."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F


class _PixelEncoder(ABC):
    """Images are taken as they are, in [0, 1]; the image feature is the mean patch."""

    def __init__(self, patch_size: int, channels: int, dim: int) -> None:
        if patch_size < 1:
            raise ValueError(f"patch_size is {patch_size}; use 1 or more")
        self.mean, self.std = (0.0,) * channels, (1.0,) * channels
        self.patch_size = patch_size
        self.dim = dim
        self.device = torch.device("cpu")

    @abstractmethod
    def patches(self, images: Tensor) -> Tensor: ...

    def image(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D]."""
        return self.patches(images).mean(dim=(2, 3))


class MeanColour(_PixelEncoder):
    """A patch is its mean colour: D = C."""

    def __init__(self, patch_size: int, channels: int = 3) -> None:
        super().__init__(patch_size, channels, dim=channels)

    def patches(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C, h, w]."""
        return F.avg_pool2d(images, self.patch_size)


class RawPatch(_PixelEncoder):
    """A patch is its pixels: D = C * patch_size**2, channel by channel."""

    def __init__(self, patch_size: int, channels: int = 3) -> None:
        super().__init__(patch_size, channels, dim=channels * patch_size**2)

    def patches(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, C * patch_size**2, h, w]."""
        return F.pixel_unshuffle(images, self.patch_size)
