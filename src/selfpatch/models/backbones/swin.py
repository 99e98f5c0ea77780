"""Swin transformers."""

from collections.abc import Iterator

from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from selfpatch.core.types import Tokens
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.config import SwinConfig


class Swin(Backbone):
    """A timm `SwinTransformer` with `strict_img_size` off.

    Its tokens come from the last stage. A mask has their grid and is laid on the finer map of embedded patches.
    """

    trunk: SwinTransformer
    config: SwinConfig

    def __init__(self, trunk: SwinTransformer, config: SwinConfig) -> None:
        super().__init__(trunk, config)
        self.embedding_stride, self.embedding_dim = config.EMBEDDING, config.embed_dim

    def encode(self, embedded: Tensor) -> Tokens:
        """Run embedded patches through the stages and the final norm."""
        raw = self.trunk.layers(embedded)  # [B, h, w, D]
        return Tokens(None, self.trunk.norm(raw), raw)

    def _maps(self, embedded: Tensor, last: int) -> Iterator[tuple[int, Tensor]]:
        x = embedded
        for stage, layer in enumerate(self.trunk.layers[:last], start=1):
            x = layer(x)
            yield stage, x

    def layer_of(self, name: str) -> int:
        """Return the number of a parameter's block; patch merging belongs to the block after it."""
        _, part, *rest = name.split(".")
        if part == "layers":
            stage, kind, *block = rest
            before = sum(self.config.depths[: int(stage)])
            return 1 + before + (int(block[0]) if kind == "blocks" else 0)
        return self.num_layers + 1 if part == "norm" else 0


def build_swin(config: SwinConfig, *, drop_path: float = 0.0) -> Swin:
    """Build a freshly initialised Swin transformer.

    It is built for an image whose last stage is one window, so that no window is clipped and weights fit any image
    size; smaller maps are padded.
    """
    trunk = SwinTransformer(
        img_size=config.window * config.patch_size,
        patch_size=config.EMBEDDING,
        in_chans=config.in_channels,
        num_classes=0,
        embed_dim=config.embed_dim,
        depths=config.depths,
        num_heads=config.stage_heads,
        window_size=config.window,
        strict_img_size=False,
        drop_path_rate=drop_path,
    )
    if not config.final_norm:
        trunk.norm = nn.Identity()
    return Swin(trunk, config)
