"""What discovery looks at: the patch features of an image at its own resolution, and the class token's attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.types import Encoder
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.encoder import BranchEncoder
from selfpatch.ops.images import normalise

Facet = Literal["key", "query", "value", "token"]


@dataclass(frozen=True)
class PatchView:
    """Which patch features of which encoder.

    Attributes:
        facet: keys, queries or values of a block's attention, or the encoder's patch tokens. None: keys of a ViT,
            tokens of anything else.
        block: counted from 1; None: the last.
    """

    encoder: Encoder
    facet: Facet | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        if self.facet not in (None, "key", "query", "value", "token"):
            raise ValueError(f"facet is {self.facet!r}; use key, query, value or token")
        if self.vit is None and (self.facet not in (None, "token") or self.block is not None):
            asked = f"facet {self.facet!r}" if self.facet not in (None, "token") else f"block {self.block}"
            raise ValueError(f"{asked} is asked for, but only a ViT has blocks with keys; use the facet token")
        if self.facet == "token" and self.block is not None:
            raise ValueError(f"block is {self.block}, but tokens are the encoder's own; use a key, query or value")
        if self.vit is not None and self.block is not None and not 1 <= self.block <= self.vit.num_layers:
            raise ValueError(f"block {self.block} is asked for, but this ViT has 1 to {self.vit.num_layers}")

    @property
    def vit(self) -> ViT | None:
        backbone = self.encoder.backbone if isinstance(self.encoder, BranchEncoder) else None
        return backbone if isinstance(backbone, ViT) else None

    @property
    def resolved(self) -> Facet:
        return self.facet or ("token" if self.vit is None else "key")

    @property
    def standardised(self) -> bool:
        """Features that have no sign, as behind a ReLU, are all alike in LOST's eyes: a network that is no ViT has them
        shifted and scaled over the whole map, as the released code does with a ResNet's."""
        return self.vit is None

    def padded(self, image: Tensor) -> Tensor:
        """[C, H, W] uint8 or float32 -> [1, C, H', W'] normalised, zeros at the right and at the bottom up to a
        multiple of the patch."""
        batch = normalise(image[None].to(self.encoder.device), self.encoder.mean, self.encoder.std)
        bottom, right = (-side % self.encoder.patch_size for side in image.shape[1:])
        return F.pad(batch, (0, right, 0, bottom))

    @torch.no_grad()
    def features(self, padded: Tensor) -> Tensor:
        """[h, w, D] float32."""
        facet = self.resolved
        if facet == "token":
            features = self.encoder.patches(padded)[0].movedim(0, -1).float()
            return F.layer_norm(features, features.shape) if self.standardised else features
        assert self.vit is not None  # `__post_init__` saw to it
        return self.vit.facet(padded, facet, self._place)[0].float()

    @torch.no_grad()
    def class_attention(self, padded: Tensor) -> Tensor:
        """[H, h, w] what the class token gives each patch, head by head.

        Raises:
            ValueError: the network has no class token.
        """
        self.require_class_token()
        assert self.vit is not None
        given: list[Tensor] = []
        projection = self.vit.trunk.get_submodule(f"blocks.{self._place % self.vit.num_layers}.attn.qkv")
        handle = projection.register_forward_hook(lambda _, __, output: given.append(output[0]))
        try:
            self.vit(padded)
        finally:
            handle.remove()
        query, key, _ = given[0].float().unflatten(-1, (3, self.vit.num_heads, -1)).permute(1, 2, 0, 3)  # [H, n, d]
        weights = (query[:, 0, None] * query.shape[-1] ** -0.5 @ key.mT).softmax(-1)[:, 0]
        patch = self.encoder.patch_size
        grid = padded.shape[2] // patch, padded.shape[3] // patch
        return weights[:, self.vit.trunk.num_prefix_tokens :].unflatten(1, grid)

    def require_class_token(self) -> None:
        if self.vit is None or not self.vit.has_class_token:
            raise ValueError(
                "attention boxes need a ViT with a class token, and this network has none; use lost or tokencut"
            )

    @property
    def _place(self) -> int:
        return -1 if self.block is None else self.block - 1
