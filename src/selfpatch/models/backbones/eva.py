"""Vision transformers of timm's class `Eva`: EVA-02 (arXiv 2303.11331), PE (2504.13181), ViTs with rotary positions."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.eva import Eva as TimmEva
from timm.models.eva import EvaBlockPostNorm
from torch import Tensor, nn

from selfpatch.core.types import Tokens
from selfpatch.models.backbones.config import ViTConfig
from selfpatch.models.backbones.positions import add_positions
from selfpatch.models.backbones.vit import ViT


class Eva(ViT):
    """A timm `Eva` with `dynamic_img_size`. Blocks and rotations are timm's; the rest is that of any ViT.

    The image token of a network that averages is the norm of the mean patch, as in timm, and else the CLS token.
    """

    trunk: Any
    config: ViTConfig

    def __init__(self, trunk: TimmEva, config: ViTConfig) -> None:
        super().__init__(trunk, config)  # type: ignore[arg-type]
        self.averages = trunk.global_pool == "avg"

    def keep_class_attention(self) -> None:
        """Raise ValueError: attention is timm's own, and gives no weights."""
        raise ValueError(
            f"the CLS token's attention is not read from timm's {self.config.timm_model}; use another ViT, or learn "
            "from all patches with --leopart.foreground false"
        )

    def rotation(self, h: int, w: int) -> Any:
        """Return timm's rotation of queries and keys on a grid of patches, or None if the network has none."""
        return None if self.trunk.rope is None else self.trunk.rope.get_embed(shape=(h, w))

    def _rotations(self, embedded: Tensor) -> Iterator[Any]:
        rotation = self.rotation(*embedded.shape[1:3])
        for block in range(self.num_layers):
            yield rotation[block] if self.trunk.rope_mixed else rotation

    def _through(self, block: nn.Module, x: Tensor, rotation: Any) -> Tensor:
        output: Tensor = block(x, rope=rotation)
        return output

    def _block_input(self, embedded: Tensor) -> Tensor:
        normed: Tensor = self.trunk.norm_pre(add_positions(self.trunk, embedded, self.config.position_embedding))
        return normed

    def _tokens(self, raw: Tensor, embedded: Tensor) -> Tokens:
        tokens = super()._tokens(raw, embedded)
        return tokens._replace(cls=self.trunk.norm(tokens.raw_patches.mean((1, 2)))) if self.averages else tokens

    def _projected(self, block: Any, x: Tensor) -> Tensor:
        """Return queries, keys and values [B, N, 3 * D] of a block's attention, of which timm has several forms."""
        attention, x = block.attn, x if isinstance(block, EvaBlockPostNorm) else block.norm1(x)
        if attention.qkv is None:
            parts = [layer(x) for layer in (attention.q_proj, attention.k_proj, attention.v_proj)]
            if len({part.shape for part in parts}) > 1:
                raise ValueError(f"several heads of {self.config.timm_model} share their keys; use the facet token")
            return torch.cat(parts, dim=-1)
        if getattr(attention, "q_bias", None) is None:
            return attention.qkv(x)
        return F.linear(x, attention.qkv.weight, torch.cat([attention.q_bias, attention.k_bias, attention.v_bias]))
