"""Features of one layer of a network: an earlier block of a ViT, a stage of another network, or keys of attention."""

import math
from typing import Any, Literal

import torch
from torch import Tensor

from selfpatch.core.types import Encoder
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.resnet import ResNet
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.finite_features import checked_features

Facet = Literal["token", "key", "query", "value"]


class LayerEncoder:
    """Encoder whose patch features come from one layer of another encoder's network.

    Tokens of the last layer are the other encoder's own features: after the final norm where the network was trained
    with it. Tokens of an earlier layer are before any norm. Keys, queries and values are those of the layer's attention
    (ViT only).

    Args:
        encoder: the other encoder.
        facet: features of the layer.
        block: block of a ViT, counted from 1; the last if None.
        stage: stage of a Swin, ResNet or ConvNeXt, counted from 1; as `near_stride` says, or the last, if None.
        depth: layer as a share of all layers, if neither `block` nor `stage` is given.
        near_stride: stride in pixels. If given, the default stage is the one whose stride is nearest, the last of
            several.
        output_stride: largest stride of a ResNet in pixels; `ResNet.with_output_stride` explains it and `dilate`.
        dilate: whether to dilate the kernels of stages that lost their stride.

    Attributes:
        layer: number of the block or stage; None if the encoder is no network of this package.
        is_vit: whether layers are blocks of a ViT.
        is_staged: whether layers are stages, of another network of this package.
        patch_size: side of a feature's patch in pixels, the stride of the layer.
        dim: width of the features.

    Raises:
        ValueError: the network has no such layer or facet, or is no ResNet that `output_stride` can change.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        facet: Facet = "token",
        block: int | None = None,
        stage: int | None = None,
        depth: float | None = None,
        near_stride: int | None = None,
        output_stride: int | None = None,
        dilate: bool = True,
    ) -> None:
        if output_stride is not None:
            encoder = _with_output_stride(encoder, output_stride, dilate)
        self.encoder, self.facet, self.dilate = encoder, facet, dilate
        self.mean, self.std = encoder.mean, encoder.std
        backbone = encoder.backbone if isinstance(encoder, BranchEncoder) else None
        self.backbone = backbone
        self.is_vit = isinstance(backbone, ViT)
        self.is_staged = backbone is not None and not self.is_vit
        if facet != "token" and not self.is_vit:
            raise ValueError(f"facet is {facet!r}, but only a ViT has keys, queries and values; use token")
        self.layer: int | None = None
        self.dim, self.patch_size = encoder.dim, encoder.patch_size
        if backbone is not None:
            self.layer = _chosen_layer(backbone, block, stage, depth, near_stride)
            self.dim, self.patch_size = backbone.map_dims[self.layer - 1], backbone.map_strides[self.layer - 1]
        elif block is not None or stage is not None:
            setting = f"block is {block}" if block is not None else f"stage is {stage}"
            raise ValueError(f"{setting}, but a {type(encoder).__name__} has no layers to choose from; leave it out")

    @property
    def device(self) -> torch.device:
        """Device that images must be on."""
        return self.encoder.device

    @torch.no_grad()
    def patches(self, images: Tensor) -> Tensor:
        """Return patch features, float32 [B, D, h, w], of normalised images [B, C, H, W]."""
        if self.facet != "token":
            assert isinstance(self.backbone, ViT)
            assert self.layer is not None
            facet = self.backbone.facet(images, self.facet, self.layer - 1)
            return checked_features(facet.movedim(-1, 1).float(), images)
        if self.backbone is None or self.layer in (None, len(self.backbone.map_dims)):
            return checked_features(self.encoder.patches(images), images)
        return checked_features(self.backbone.maps(images, [self.layer])[0].movedim(-1, 1).float(), images)

    def image(self, images: Tensor) -> Tensor:
        """Return the other encoder's image features [B, D] of normalised images [B, C, H, W]."""
        return self.encoder.image(images)

    def recorded(self) -> dict[str, Any]:
        """Return what a result records of the layer: its number, as block or stage, and its stride in pixels."""
        return {
            "block": self.layer if self.is_vit else None,
            "stage": self.layer if self.is_staged else None,
            "stride": self.patch_size,
        }


def _with_output_stride(encoder: Encoder, stride: int, dilate: bool) -> BranchEncoder:
    backbone = encoder.backbone if isinstance(encoder, BranchEncoder) else None
    if not isinstance(backbone, ResNet):
        kind = type(encoder).__name__ if backbone is None else backbone.config.family
        raise ValueError(f"output_stride is {stride}, but a {kind} cannot be dilated; leave it out, it is for a ResNet")
    assert isinstance(encoder, BranchEncoder)
    finer = backbone.with_output_stride(stride, dilate=dilate)
    return BranchEncoder(finer, encoder.pool, normed_patches=encoder.normed_patches).train(encoder.training)


def layer_at(share: float, count: int) -> int:
    """Return the number of the layer, of `count` that are counted from 1, nearest to a share of the depth.

    Of two layers that are equally near, the later one is taken.
    """
    return max(1, math.floor(share * count + 0.5))


def _chosen_layer(
    backbone: Backbone, block: int | None, stage: int | None, depth: float | None, near_stride: int | None
) -> int:
    """Return the number of the layer that the arguments of `LayerEncoder` choose, counted from 1."""
    family, count = backbone.config.family, len(backbone.map_dims)
    name, given, other, refused = "stage", stage, "block", block
    if isinstance(backbone, ViT):
        name, given, other, refused = "block", block, "stage", stage
    if refused is not None:
        raise ValueError(f"{other} is {refused}, but a {family} has {name}s; use {name}, 1 to {count}")
    if given is not None and given > count:
        raise ValueError(f"{name} is {given}, but this {family} has {count}; use 1 to {count}")
    if given is not None:
        return given
    if depth is not None:
        return layer_at(depth, count)
    if near_stride is None:
        return count
    distances = [abs(stride - near_stride) for stride in backbone.map_strides]
    return max(layer for layer, distance in enumerate(distances, start=1) if distance == min(distances))
