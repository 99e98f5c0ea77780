"""Swin transformers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from selfpatch.core.types import Tokens
from selfpatch.models.backbones.base import Backbone, freeze_projection
from selfpatch.models.backbones.config import SwinConfig

SIZES = {"swin_tiny": (96, (2, 2, 6, 2), 3), "swin_small": (96, (2, 2, 18, 2), 3), "swin_base": (128, (2, 2, 18, 2), 4)}
"""Width of the first stage, depths and heads of the first stage by name (arXiv 2103.14030)."""


class Swin(Backbone):
    """A timm `SwinTransformer` with `strict_img_size` off. Its tokens are those of the last stage; a mask of their grid
    is laid on the finer map of embedded patches."""

    trunk: SwinTransformer
    config: SwinConfig

    def __init__(self, trunk: SwinTransformer, config: SwinConfig) -> None:
        super().__init__(trunk, config)
        self.embedding_stride, self.embedding_dim = config.EMBEDDING, config.embed_dim

    def embed(self, images: Tensor) -> Tensor:
        return self.trunk.patch_embed(images)

    def encode(self, embedded: Tensor) -> Tokens:
        raw = self.trunk.layers(embedded)  # [B, h, w, D]
        return Tokens(None, self.trunk.norm(raw), raw)

    @property
    def map_dims(self) -> tuple[int, ...]:
        return tuple(self.config.embed_dim << stage for stage in range(len(self.config.depths)))

    def _maps(self, embedded: Tensor, last: int) -> Iterator[tuple[int, Tensor]]:
        x = embedded
        for number in range(1, last + 1):
            x = self.trunk.layers[number - 1](x)
            yield number, x

    @property
    def num_layers(self) -> int:
        return sum(self.config.depths)

    def layer_of(self, name: str) -> int:
        _, part, *rest = name.split(".")
        if part == "layers":
            stage, kind, *block = rest
            before = [0, *accumulate(self.config.depths)][int(stage)]
            return 1 + before + (int(block[0]) if kind == "blocks" else 0)  # merging goes with the block after it
        return self.num_layers + 1 if part == "norm" else 0

    def freeze_embedding(self) -> None:
        freeze_projection(self.trunk.get_submodule("patch_embed.proj"))


def build_swin(shape: SwinConfig, *, drop_path: float = 0.0) -> Swin:
    """A freshly initialised Swin transformer. It is built as for an image whose last stage is one window, so that no
    window is clipped and the same weights serve any image size; smaller maps are padded."""
    stages = range(len(shape.depths))
    trunk = SwinTransformer(
        img_size=shape.window * shape.patch_size,
        patch_size=shape.EMBEDDING,
        in_chans=shape.in_channels,
        num_classes=0,
        embed_dim=shape.embed_dim,
        depths=shape.depths,
        num_heads=tuple(shape.first_heads << stage for stage in stages),
        window_size=shape.window,
        strict_img_size=False,
        drop_path_rate=drop_path,
    )
    if not shape.final_norm:
        trunk.norm = nn.Identity()
    return Swin(trunk, shape)
