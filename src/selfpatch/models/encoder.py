"""Trained backbone and pool as evaluations see them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from selfpatch.core.types import Tokens
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.finite_features import checked_features
from selfpatch.models.pooling import PositivePool


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
    """Trained backbone and pool as an `Encoder`, for evaluations and pictures.

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

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @torch.no_grad()
    def patches(self, images: Tensor) -> Tensor:
        """Return patch features [B, D, h, w] of normalised images [B, C, H, W].

        Raises:
            ValueError: images have another shape or type, or the patch size does not divide their sides; within
                `requiring_finite_features`, features are not finite. `image` and `image_tokens` raise the same.
        """
        tokens = self.backbone(self._checked(images))
        patches = tokens.patches if self.normed_patches else tokens.raw_patches
        return checked_features(patches.permute(0, 3, 1, 2).float(), images)

    @torch.no_grad()
    def image(self, images: Tensor) -> Tensor:
        """Return image features [B, D] of normalised images [B, C, H, W]."""
        return checked_features(image_token(self.backbone(self._checked(images)), self.pool).float(), images)

    @torch.no_grad()
    def image_tokens(self, images: Tensor, blocks: int) -> Tensor:
        """Return the image tokens of a ViT's last blocks, [B, blocks, D]; a pool is applied to each."""
        if not isinstance(self.backbone, ViT):
            raise ValueError(f"a {self.backbone.config.family} has one image token; blocks is {blocks}, use 1")
        tokens = self.backbone.last_tokens(self._checked(images), blocks)
        return checked_features(torch.stack([image_token(t, self.pool) for t in tokens], 1).float(), images)

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
        return images
