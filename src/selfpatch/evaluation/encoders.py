"""Encoders other than networks of this package: functions of images, plain colours and pixels, and encoders in bf16."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selfpatch.core.text import counted
from selfpatch.core.types import Encoder
from selfpatch.evaluation.config import DenseConfig, Precision
from selfpatch.models.debiased import debiased
from selfpatch.models.encoder import Features
from selfpatch.models.finite_features import checked_features
from selfpatch.models.image_transform import ImageTransform
from selfpatch.ops.images import IMAGENET_MEAN, IMAGENET_STD

PROBE = 224
"""Side in pixels of the black image that shows the width of the features, rounded down to whole patches."""


class FunctionEncoder:
    """Encoder that calls a function of normalised images; the image feature is the mean patch.

    `FunctionEncoder(model.forward_features, patch_size=14, prefix_tokens=1)` encodes with a ViT of timm that has a CLS
    token. Put the network into evaluation mode first.

    Args:
        function: function of images [B, C, H, W] that returns patch features [B, D, h, w], or tokens
            [B, prefix_tokens + h*w, D] row by row; h = H / patch_size and w = W / patch_size.
        patch_size: side of a patch in pixels.
        dim: width D of the features; if None, found by encoding a black image of about 224 pixels.
        mean: mean of each channel that images in [0, 1] are normalised with.
        std: standard deviation of each channel.
        prefix_tokens: number of tokens to drop before the patches (CLS, registers).
        device: device of the images; defaults to the network's if the function is a network or its method, else the
            CPU.

    Raises:
        ValueError: the function cannot be called, a number is out of range, or the function does not return patch
            features of its images. `patches` and `image` raise the last one too.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Any],
        patch_size: int,
        dim: int | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        *,
        prefix_tokens: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        if not callable(function):
            raise ValueError(f"function is {function!r}, which cannot be called; give a function of images")
        if patch_size < 1 or (dim is not None and dim < 1) or prefix_tokens < 0:
            raise ValueError(
                f"patch_size {patch_size}, dim {dim}, prefix_tokens {prefix_tokens}: use patch_size >= 1, dim >= 1 or "
                "None, and prefix_tokens >= 0"
            )
        if len(mean) != len(std) or not mean or min(std) <= 0:
            raise ValueError(f"mean {tuple(mean)} and std {tuple(std)}: use one number a channel each, std above 0")
        self.function = function
        self.patch_size = patch_size
        self.mean, self.std = tuple(mean), tuple(std)
        self.prefix_tokens = prefix_tokens
        self.device = _device_of(function) if device is None else torch.device(device)
        side = max(1, PROBE // patch_size) * patch_size
        black = torch.zeros(1, len(mean), side, side, device=self.device)
        self.dim = dim if dim is not None else self._map(black).shape[1]

    def patches(self, images: Tensor) -> Tensor:
        """Return patch features, float32 [B, D, h, w], of normalised images [B, C, H, W]."""
        features = checked_features(self._map(images), images)
        if features.shape[1] != self.dim:
            raise ValueError(f"the function returned features of width {features.shape[1]}, but dim is {self.dim}")
        return features.float()

    def image(self, images: Tensor) -> Tensor:
        """Return image features, float32 [B, D], of normalised images [B, C, H, W]."""
        return self.patches(images).mean(dim=(2, 3))

    @torch.no_grad()
    def _map(self, images: Tensor) -> Tensor:
        """Return the function's output as features [B, D, h, w] of any type and width."""
        (height, width), patch = images.shape[-2:], self.patch_size
        if height % patch or width % patch:
            raise ValueError(
                f"images of {width} x {height} pixels cannot be cut into patches of {patch}; use sides that are "
                "multiples of it"
            )
        grid = h, w = height // patch, width // patch
        output = self.function(images)
        if not isinstance(output, Tensor):
            raise ValueError(f"the function returned a {type(output).__name__}; it must return one tensor of features")
        shape, tokens = tuple(output.shape), self.prefix_tokens + h * w
        if len(shape) == 4 and (shape[0], *shape[2:]) == (len(images), h, w):
            return output
        if len(shape) == 3 and shape[:2] == (len(images), tokens):
            return output[:, self.prefix_tokens :].movedim(1, -1).unflatten(-1, grid)
        if len(shape) == 3 and shape[1] > h * w:
            extra = shape[1] - h * w
            advice = f"; if the first {extra} are not patches, set prefix_tokens={extra}"
        elif len(shape) == 4 and shape[1:3] == grid:
            advice = "; move the last axis to the second place"
        elif len(shape) == 2:
            advice = "; these are image features, but evaluations need patch features"
        else:
            advice = f", for patches of {patch} pixels"
        wanted = f"[{len(images)}, D, {h}, {w}] or [{len(images)}, {tokens}, D]"
        raise ValueError(f"the function returned features of shape {list(shape)}; return {wanted}{advice}")


def _device_of(function: Callable[[Tensor], Any]) -> torch.device:
    network = getattr(function, "__self__", function)
    parameters = network.parameters() if isinstance(network, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


class BFloat16Encoder:
    """Features of another encoder, computed in bfloat16 by autocast and returned in float32."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.dim, self.patch_size = encoder, encoder.dim, encoder.patch_size
        self.mean, self.std = encoder.mean, encoder.std

    @property
    def device(self) -> torch.device:
        """Device that images must be on."""
        return self.encoder.device

    def patches(self, images: Tensor) -> Tensor:
        """Return patch features, float32 [B, D, h, w], of normalised images [B, C, H, W]."""
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.encoder.patches(images).float()

    def image(self, images: Tensor) -> Tensor:
        """Return image features, float32 [B, D], of normalised images [B, C, H, W]."""
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.encoder.image(images).float()


def in_precision(encoder: Encoder, precision: Precision) -> Encoder:
    """Return the encoder itself for `float32`, or a `BFloat16Encoder` around it for `bf16`."""
    return encoder if precision == "float32" else BFloat16Encoder(encoder)


def dense_encoder(encoder: Encoder, config: DenseConfig) -> Encoder:
    """Return the encoder as an evaluation reads its patch features: in its precision, and debiased if it says so."""
    return debiased(in_precision(encoder, config.precision), config.debias)


def require_rgb(encoder: Encoder, evaluation: str) -> None:
    """Raise ValueError if an encoder takes images of another number of channels than three."""
    if (channels := len(encoder.mean)) != 3:
        raise ValueError(
            f"the encoder takes images of {counted(channels, 'channel')}; {evaluation} needs one of RGB images"
        )


class PixelEncoder(ABC):
    """Encoder of images in [0, 1] without normalisation; the image feature is the mean patch."""

    def __init__(self, patch_size: int, channels: int, dim: int) -> None:
        if patch_size < 1:
            raise ValueError(f"patch_size is {patch_size}; use 1 or more")
        self.mean, self.std = (0.0,) * channels, (1.0,) * channels
        self.patch_size, self.dim, self.device = patch_size, dim, torch.device("cpu")
        self.transform = ImageTransform(self.mean, self.std, patch_size)

    @abstractmethod
    def patches(self, images: Tensor) -> Tensor:
        """Return patch features [B, D, h, w] of images [B, C, H, W]."""

    def __call__(self, images: Tensor) -> Features:
        """Return image and patch features of images [B, C, H, W]."""
        return Features(self.image(images), self.patches(images))

    def image(self, images: Tensor) -> Tensor:
        """Return the mean patch [B, D] of images [B, C, H, W]."""
        return self.patches(images).mean(dim=(2, 3))


class MeanColour(PixelEncoder):
    """Encoder whose patch feature is the mean colour: D = C."""

    def __init__(self, patch_size: int, channels: int = 3) -> None:
        super().__init__(patch_size, channels, dim=channels)

    def patches(self, images: Tensor) -> Tensor:
        """Return mean colours [B, C, h, w] of images [B, C, H, W]."""
        return F.avg_pool2d(images, self.patch_size)


class RawPatch(PixelEncoder):
    """Encoder whose patch feature is its pixels: D = C * patch_size**2, channel by channel."""

    def __init__(self, patch_size: int, channels: int = 3) -> None:
        super().__init__(patch_size, channels, dim=channels * patch_size**2)

    def patches(self, images: Tensor) -> Tensor:
        """Return pixels [B, C * patch_size**2, h, w] of images [B, C, H, W]."""
        return F.pixel_unshuffle(images, self.patch_size)
