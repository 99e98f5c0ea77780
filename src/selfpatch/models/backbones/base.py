"""What all backbones have in common: images in, `Tokens` out, patches masked on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from selfpatch.core.types import Tokens
from selfpatch.models.backbones.config import AnyBackboneConfig
from selfpatch.models.layers.batch_norm import BatchNorm


class Backbone(nn.Module):
    """A trunk of timm's as `images [B, C, H, W] -> Tokens`.

    Attributes:
        trunk: the timm model.
        config: the architecture it was built from.
        dim: width D of its tokens.
        patch_size: side in pixels of what one token stands for.
        has_class_token: whether `Tokens.cls` is given.
        mask_token: [1, E] what is put in the place of embedded patches that the student is not to see, or None.
    """

    maskable: ClassVar[bool] = True
    embedding_stride: int
    """Side in pixels of the patches that are embedded, on whose map masks are laid."""
    embedding_dim: int
    has_class_token = False

    def __init__(self, trunk: nn.Module, config: AnyBackboneConfig) -> None:
        super().__init__()
        self.trunk = trunk
        self.config = config
        self.dim, self.num_heads, self.patch_size = config.dim, config.num_heads, config.patch_size
        self.mean, self.std = config.mean, config.std
        self.register_parameter("mask_token", None)

    def add_mask_token(self) -> None:
        """Only where something masks: a parameter without gradient would hold up DDP."""
        self.mask_token = nn.Parameter(torch.zeros(1, self.embedding_dim))

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError where the patch does not divide the image."""
        p = self.patch_size
        for side in (height, width):
            if side % p or side < p:
                nearest = max(p, round(side / p) * p)
                raise ValueError(
                    f"patch size {p} does not divide the image side {side}; use a multiple of {p}, e.g. {nearest}"
                )

    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tokens:
        """Encodes images.

        Args:
            images: [B, C, H, W], normalised, with sides that the patch divides.
            mask: [B, h, w] bool, True where the mask token takes the place of what is embedded.

        Raises:
            ValueError: the patch does not divide a side.
        """
        self.check_size(*images.shape[-2:])
        embedded = self.embed(images)
        if mask is not None:
            embedded = self._mask(embedded, mask)
        return self.encode(embedded)

    def _mask(self, embedded: Tensor, mask: Tensor) -> Tensor:
        assert self.mask_token is not None
        finer = self.patch_size // self.embedding_stride
        if finer > 1:
            mask = mask.repeat_interleave(finer, 1).repeat_interleave(finer, 2)
        return torch.where(mask[..., None], self.mask_token.to(embedded.dtype), embedded)

    def embed(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, H / embedding_stride, W / embedding_stride, E]."""
        raise NotImplementedError

    def encode(self, embedded: Tensor) -> Tokens:
        """What `embed` gave, through the rest of the trunk."""
        raise NotImplementedError

    @property
    def map_dims(self) -> tuple[int, ...]:
        """Widths of all maps that `maps` can give, the first one first."""
        raise NotImplementedError

    def maps(self, images: Tensor, numbers: Sequence[int]) -> list[Tensor]:
        """What leaves inner layers, before any norm, for heads that look at several of them.

        Args:
            images: as for `forward`.
            numbers: which, counted from 1: blocks of a ViT, stages of a Swin or a ResNet.

        Returns:
            [B, h, w, D] of each, of the size and width that it has there.

        Raises:
            ValueError: there are not so many.
        """
        self.check_size(*images.shape[-2:])
        count = len(self.map_dims)
        for number in numbers:
            if not 1 <= number <= count:
                raise ValueError(f"layer {number} is asked for, but this {self.config.family} has 1 to {count}")
        found = dict(self._maps(self.embed(images), max(numbers)))
        return [found[number] for number in numbers]

    def _maps(self, embedded: Tensor, last: int) -> Iterator[tuple[int, Tensor]]:
        """Each map with its number, up to `last`."""
        raise NotImplementedError

    def repeated_parts(self) -> Sequence[nn.Module]:
        """Modules that are all alike: what is worth compiling, as it is done once for all of them.

        Raises:
            ValueError: there are none.
        """
        raise ValueError(f"compile is for a ViT; the blocks of a {self.config.family} take minutes each; leave it out")

    @property
    def num_layers(self) -> int:
        """Layers after the embedding."""
        raise NotImplementedError

    def layer_of(self, name: str) -> int:
        """The layer that a parameter of this module belongs to, by its name: 0 for the embedding, then 1, 2, ...;
        `num_layers` + 1 for what comes after the last."""
        raise NotImplementedError

    def freeze_first(self, layers: int) -> None:
        """Keeps the embedding and the first so many layers as they are.

        Raises:
            ValueError: there are not so many, or nothing would be left to train.
        """
        if layers >= self.num_layers:
            raise ValueError(
                f"backbone.frozen_blocks is {layers}, but the network has {self.num_layers} blocks; "
                f"use at most {self.num_layers - 1}"
            )
        for name, parameter in self.named_parameters():
            if name != "mask_token" and self.layer_of(name) <= layers:
                parameter.requires_grad_(False)
        for name, part in self.named_modules():
            if isinstance(part, BatchNorm) and self.layer_of(name) <= layers:
                part.frozen = True

    def freeze_embedding(self) -> None:
        """Draws the patch projection anew and keeps it (MoCo-v3, arXiv 2104.02057, section 4.2).

        Raises:
            ValueError: the trunk has none.
        """
        raise ValueError(
            f"backbone.freeze_patch_embed is for a ViT or a Swin; a {self.config.family} embeds no patches"
        )


def freeze_projection(projection: nn.Module) -> None:
    """Xavier-uniform over all that a patch holds, without bias, as the released code of MoCo-v3 has it: what is frozen
    never recovers from a wrong scale."""
    assert isinstance(projection, nn.Conv2d)
    with torch.no_grad():
        nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))
        if projection.bias is not None:
            projection.bias.zero_()
    projection.requires_grad_(False)


def disable_drop_path(module: nn.Module) -> None:
    """Sets every drop path rate to 0; the module may stay in training mode."""
    for part in module.modules():
        if isinstance(part, DropPath):
            part.drop_prob = 0.0
