"""Trained backbone and pool as evaluations see them."""

import warnings
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from selfpatch.core.types import Tokens
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.finite_features import checked_features
from selfpatch.models.image_transform import ImageTransform
from selfpatch.models.pooling import PositivePool


class Features(NamedTuple):
    """Features of a batch of images."""

    cls: Tensor  # [B, D]
    """Image features: the pool's token if there is a pool, else the CLS token, else the mean of the patches."""
    patches: Tensor  # [B, D, h, w]
    """Patch features."""


def image_token(tokens: Tokens, pool: nn.Module | None) -> Tensor:
    """Return the image token [B, D]: the pool's, else the backbone's CLS token, else the mean of its patches."""
    if pool is not None:
        return pool(tokens.raw_patches.flatten(1, 2))
    return tokens.patches.mean((1, 2)) if tokens.cls is None else tokens.cls


def share_final_norm(backbone: Backbone, pool: nn.Module | None) -> None:
    """Make the trunk's final norm the norm of a positive pool above it, if the trunk has one.

    A trunk is trained without final norm below a pool, whose norm replaces it, unless its initial weights have one. The
    patches of those weights are what comes out of that norm, so that it goes on as the one norm of both.
    """
    if isinstance(pool, PositivePool) and backbone.final_norm is not None:
        pool.norm = backbone.final_norm


class BranchEncoder(nn.Module):
    """Trained backbone and pool, as `selfpatch.load` returns them.

    `encoder(images)` gives both features with gradients, `patches` and `image` give one of them without. Images are
    normalised; `transform` makes them of pictures. The network is in evaluation mode until `train()`.

    Args:
        normed_patches: return patch features after the trunk's final norm (DINO) instead of the last block's output
            (SelfPatch). Both are the same for a trunk without final norm.
        projection: weights of the image token's `PrototypeHead`, from which fine-tuning with few labels starts; empty
            if the source has none. They are no part of the encoder's own state.
    """

    def __init__(
        self,
        backbone: Backbone,
        pool: nn.Module | None,
        *,
        normed_patches: bool = True,
        projection: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        share_final_norm(backbone, pool)
        self.backbone, self.pool, self.normed_patches = backbone, pool, normed_patches
        self.projection = projection or {}
        self.dim, self.patch_size = backbone.dim, backbone.patch_size
        self.mean, self.std = backbone.mean, backbone.std
        self._has_seen_images = False

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def transform(self) -> ImageTransform:
        """Function that makes a normalised batch of PIL images, arrays or tensors: `transform(images, size=224)`."""
        return ImageTransform(self.mean, self.std, self.patch_size)

    def forward(self, images: Tensor) -> Features:
        """Return image and patch features of normalised images [B, C, H, W], with gradients.

        Raises:
            ValueError: images have another shape or type, or the patch size does not divide their sides; within
                `requiring_finite_features`, features are not finite. `patches`, `image` and `image_tokens` raise the
                same.
        """
        tokens = self.backbone(self._checked(images))
        cls = checked_features(image_token(tokens, self.pool).float(), images)
        return Features(cls, checked_features(self._patches(tokens), images))

    @torch.no_grad()
    def patches(self, images: Tensor) -> Tensor:
        """Return patch features [B, D, h, w] of normalised images [B, C, H, W], without gradient."""
        return checked_features(self._patches(self.backbone(self._checked(images))), images)

    @torch.no_grad()
    def image(self, images: Tensor) -> Tensor:
        """Return image features [B, D] of normalised images [B, C, H, W], without gradient."""
        return checked_features(image_token(self.backbone(self._checked(images)), self.pool).float(), images)

    @torch.no_grad()
    def image_tokens(self, images: Tensor, blocks: int) -> Tensor:
        """Return the image tokens of a ViT's last blocks, [B, blocks, D]; a pool is applied to each."""
        if not isinstance(self.backbone, ViT):
            raise ValueError(f"a {self.backbone.config.family} has one image token; blocks is {blocks}, use 1")
        tokens = self.backbone.last_tokens(self._checked(images), blocks)
        return checked_features(torch.stack([image_token(t, self.pool) for t in tokens], 1).float(), images)

    def _patches(self, tokens: Tokens) -> Tensor:
        patches = tokens.patches if self.normed_patches else tokens.raw_patches
        return patches.permute(0, 3, 1, 2).float()

    def _checked(self, images: Tensor) -> Tensor:
        """Return the images, or raise ValueError if they are no batch of normalised images on the network's device."""
        channels = self.backbone.config.in_channels
        if not isinstance(images, Tensor):
            raise ValueError(f"images are a {type(images).__name__}; give a tensor [B, {channels}, H, W]")
        if images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point():
            raise ValueError(
                f"images are {images.dtype} {list(images.shape)}; give a batch of normalised images, "
                f"float32 [B, {channels}, H, W]"
            )
        if images.device != self.device:
            raise ValueError(f"images are on {images.device}, and the network on {self.device}; move them there")
        if not self._has_seen_images:
            self._has_seen_images = True
            _warn_of_pixels(images)
        return images


def _warn_of_pixels(images: Tensor) -> None:
    """Warn if values look like those of pictures before normalisation."""
    if type(images) is not Tensor or images.is_meta or not images.numel() or torch.compiler.is_compiling():
        return  # no values, as in a dry run, or none that may be waited for
    low, high = (float(value) for value in images.detach().aminmax())
    if low >= 0 and low < high:
        warnings.warn(
            f"the images have values from {low:.3g} to {high:.3g}, which look like pixels; "
            "normalise them, e.g. by encoder.transform(images)",
            stacklevel=2,
        )
