"""A backbone that is trained on, maps from inside it, and a decoder: images -> logits of every pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from selfpatch.evaluation.feature_pyramid import LEVELS, FourStrides
from selfpatch.evaluation.segmentation.dataset import IGNORE
from selfpatch.evaluation.segmentation.decoders import FCNHead, Norm, SemanticFPN, UPerNet, norm_layer
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.config import SwinConfig
from selfpatch.models.backbones.vit import ViT

Head = Literal["fpn", "upernet"]

AUXILIARY_WEIGHT = 0.4
AUXILIARY_LEVEL = 2

_DEPTHS: dict[Head, tuple[Fraction, ...]] = {
    "fpn": (Fraction(1, 4), Fraction(1, 2), Fraction(3, 4), Fraction(1)),
    "upernet": (Fraction(1, 3), Fraction(1, 2), Fraction(2, 3), Fraction(1)),
}
"""Where the maps of a plain ViT are taken, as shares of its depth: blocks 3, 6, 9, 12 and 4, 6, 8, 12 of twelve."""


def default_blocks(backbone: Backbone, head: Head) -> tuple[int, ...]:
    """Which maps a head looks at: blocks of a ViT at its usual depths, the four stages of a Swin or a ResNet.

    Raises:
        ValueError: there are not four stages.
    """
    if isinstance(backbone, ViT):
        return tuple(math.ceil(share * backbone.num_layers) for share in _DEPTHS[head])
    stages = len(backbone.map_dims)
    if stages != LEVELS:
        raise ValueError(f"a decoder looks at {LEVELS} stages; this {backbone.config.family} has {stages}")
    return tuple(range(1, LEVELS + 1))


class Taps(nn.Module):
    """Maps from inside a backbone, as a decoder reads them: [B, D_i, h_i, w_i], channels last in memory.

    Args:
        blocks: which, counted from 1: blocks of a ViT, stages of a Swin or a ResNet.
        normed: put each map of a ViT through the trunk's final norm, where it has one (iBOT's `out_with_norm`). The
            stages of a Swin have new norms of their own in any case, as in its released code.
    """

    def __init__(self, backbone: Backbone, blocks: Sequence[int], *, normed: bool) -> None:
        super().__init__()
        self.backbone, self.blocks = backbone, tuple(blocks)
        self.shared_norm = normed and isinstance(backbone, ViT)
        self.dims = tuple(backbone.map_dims[block - 1] for block in blocks)
        is_swin = isinstance(backbone.config, SwinConfig)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) if is_swin else nn.Identity() for dim in self.dims)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.backbone.maps(images, self.blocks)  # [B, h_i, w_i, D_i]
        if self.shared_norm:
            assert isinstance(self.backbone, ViT)
            maps = [self.backbone.trunk.norm(x) for x in maps]
        return [norm(x).movedim(-1, 1) for norm, x in zip(self.norms, maps, strict=True)]


class Segmenter(nn.Module):
    """The network that is trained: normalised images [B, C, H, W] of any size -> logits [B, K, H, W].

    Args:
        taps: the backbone, and where its maps are taken.
        head: `fpn` or `upernet`, the latter with an auxiliary head on its third map.
        num_classes: K.
        rescale: give the maps of a plain ViT strides 4, 8, 16 and 32; else they stay as they are.
        channels: of the decoder; a Semantic FPN's head has half as many.
        auxiliary_channels: of the auxiliary head.
        norm: of the decoder.
    """

    def __init__(
        self,
        taps: Taps,
        head: Head,
        num_classes: int,
        *,
        rescale: bool,
        channels: int,
        auxiliary_channels: int = 256,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        self.taps = taps
        backbone = taps.backbone
        plain = isinstance(backbone, ViT)
        between = partial(norm_layer, norm=norm)
        self.pyramid = FourStrides(backbone.dim, backbone.patch_size, between) if rescale and plain else None
        self.auxiliary: FCNHead | None = None
        if head == "fpn":
            self.decoder: SemanticFPN | UPerNet = SemanticFPN(
                taps.dims, num_classes, channels=channels, head_channels=channels // 2, norm=norm
            )
        else:
            self.decoder = UPerNet(taps.dims, num_classes, channels=channels, norm=norm)
            self.auxiliary = FCNHead(taps.dims[AUXILIARY_LEVEL], num_classes, channels=auxiliary_channels, norm=norm)

    def forward(self, images: Tensor) -> Tensor:
        return _to_pixels(self.decoder(self._maps(images)), images, self.taps.backbone.patch_size)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The decoder's loss, and 0.4 of the auxiliary head's where there is one.

        Args:
            images: [B, C, H, W], normalised.
            labels: [B, H, W] int64, 255 where there is none.
        """
        maps, patch = self._maps(images), self.taps.backbone.patch_size
        total = pixel_loss(_to_pixels(self.decoder(maps), images, patch), labels)
        if self.auxiliary is None:
            return total
        coarse = self.auxiliary(maps[AUXILIARY_LEVEL])
        return total + AUXILIARY_WEIGHT * pixel_loss(_to_pixels(coarse, images, patch), labels)

    def _maps(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[-2:]
        patch = self.taps.backbone.patch_size
        padded = F.pad(images, (0, -width % patch, 0, -height % patch))
        maps = self.taps(padded)
        return maps if self.pyramid is None else self.pyramid(maps)


def _to_pixels(logits: Tensor, images: Tensor, patch: int) -> Tensor:
    """[B, K, h, w] -> [B, K, H, W] float32: enlarged to the padded image, and what was added is cut off."""
    height, width = images.shape[-2:]
    padded = (height + -height % patch, width + -width % patch)
    # What is contiguous stays so: softmax over channels-last logits would copy them.
    return F.interpolate(logits.float().contiguous(), size=padded, mode="bilinear")[..., :height, :width]


def pixel_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy summed over the labelled pixels, over the number of all pixels, as mmsegmentation averages: a batch
    that is mostly void weighs little, and one that is nothing else gives 0.

    Args:
        logits: [B, K, H, W].
        labels: [B, H, W] int64 in 0, ..., K - 1, or 255.
    """
    return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum") / labels.numel()
