"""Patch features of an image in its own resolution, and the attention of its class token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.types import Encoder
from selfpatch.evaluation.object_discovery.config import Facet, ObjectDiscoveryConfig
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.encoder import BranchEncoder
from selfpatch.ops.images import normalise


@dataclass(frozen=True)
class PatchView:
    """Features of the facet and block of an encoder that its settings name.

    Raises:
        ValueError: the encoder has no such facet or block.
    """

    encoder: Encoder
    config: ObjectDiscoveryConfig

    def __post_init__(self) -> None:
        facet, block = self.config.facet, self.config.block
        if self.vit is None and (facet not in (None, "token") or block is not None):
            setting = f"facet is {facet!r}" if facet not in (None, "token") else f"block is {block}"
            raise ValueError(f"{setting}, but only a ViT has blocks with keys; use the facet token and no block")
        if facet == "token" and block is not None:
            raise ValueError(f"block is {block}, but tokens are the encoder's own; use a key, query or value")
        if self.vit is not None and block is not None and block > self.vit.num_layers:
            raise ValueError(f"block is {block}, but this ViT has {self.vit.num_layers} blocks")

    @property
    def vit(self) -> ViT | None:
        """The encoder's backbone if it is a ViT, else None."""
        backbone = self.encoder.backbone if isinstance(self.encoder, BranchEncoder) else None
        return backbone if isinstance(backbone, ViT) else None

    @property
    def resolved(self) -> Facet:
        """Facet that is used."""
        return self.config.facet or ("token" if self.vit is None else "key")

    @property
    def standardised(self) -> bool:
        """Whether features are shifted and scaled over the whole map, as the released code does with a ResNet's.

        Features without negative values, e.g. after a ReLU, are all similar to LOST.
        """
        return self.vit is None

    @property
    def description(self) -> str:
        """Name of the features, for the record."""
        return f"{self.resolved}, standardised over the map" if self.standardised else self.resolved

    def padded(self, image: Tensor) -> Tensor:
        """Return [1, C, H', W'] of an image [C, H, W], uint8 or float32: normalised, with zeros to the right and below.

        H' and W' are multiples of the patch size.
        """
        batch = normalise(image[None].to(self.encoder.device), self.encoder.mean, self.encoder.std)
        bottom, right = (-side % self.encoder.patch_size for side in image.shape[1:])
        return F.pad(batch, (0, right, 0, bottom))

    @torch.no_grad()
    def features(self, padded: Tensor) -> Tensor:
        """Return float32 features [h, w, D]."""
        facet = self.resolved
        if facet == "token":
            features = self.encoder.patches(padded)[0].movedim(0, -1).float()
            return F.layer_norm(features, features.shape) if self.standardised else features
        assert self.vit is not None  # checked in `__post_init__`
        return self.vit.facet(padded, facet, self._block_index)[0].float()

    @torch.no_grad()
    def class_attention(self, padded: Tensor) -> Tensor:
        """Return the class token's attention to each patch, [heads, h, w].

        Raises:
            ValueError: the network has no class token.
        """
        self.require_class_token()
        assert self.vit is not None
        outputs: list[Tensor] = []
        projection = self.vit.trunk.get_submodule(f"blocks.{self._block_index % self.vit.num_layers}.attn.qkv")
        handle = projection.register_forward_hook(lambda _, __, output: outputs.append(output[0]))
        try:
            self.vit(padded)
        finally:
            handle.remove()
        query, key, _ = outputs[0].float().unflatten(-1, (3, self.vit.num_heads, -1)).permute(1, 2, 0, 3)  # [H, n, d]
        weights = (query[:, 0, None] * query.shape[-1] ** -0.5 @ key.mT).softmax(-1)[:, 0]
        patch = self.encoder.patch_size
        grid = padded.shape[2] // patch, padded.shape[3] // patch
        return weights[:, self.vit.trunk.num_prefix_tokens :].unflatten(1, grid)

    def require_class_token(self) -> None:
        """Check that the network has a class token.

        Raises:
            ValueError: it has none.
        """
        if self.vit is None or not self.vit.has_class_token:
            raise ValueError(
                "attention boxes need a ViT with a class token, and this network has none; use lost or tokencut"
            )

    @property
    def _block_index(self) -> int:
        return -1 if self.config.block is None else self.config.block - 1
