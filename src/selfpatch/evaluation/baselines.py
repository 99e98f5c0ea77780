"""Encoders without a network: the features of plain colours and pixels, as baselines."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F


class _PixelEncoder(ABC):
    """Encoder of images in [0, 1] without normalisation; the image feature is the mean patch."""

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
        """Return the mean patch [B, D] of images [B, C, H, W]."""
        return self.patches(images).mean(dim=(2, 3))


class MeanColour(_PixelEncoder):
    """Encoder whose patch feature is the mean colour: D = C."""

    def __init__(self, patch_size: int, channels: int = 3) -> None:
        super().__init__(patch_size, channels, dim=channels)

    def patches(self, images: Tensor) -> Tensor:
        """Return mean colours [B, C, h, w] of images [B, C, H, W]."""
        return F.avg_pool2d(images, self.patch_size)


class RawPatch(_PixelEncoder):
    """Encoder whose patch feature is its pixels: D = C * patch_size**2, channel by channel."""

    def __init__(self, patch_size: int, channels: int = 3) -> None:
        super().__init__(patch_size, channels, dim=channels * patch_size**2)

    def patches(self, images: Tensor) -> Tensor:
        """Return pixels [B, C * patch_size**2, h, w] of images [B, C, H, W]."""
        return F.pixel_unshuffle(images, self.patch_size)
