"""Plain vision transformers."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp, SwiGLUPacked
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from selfpatch.core.reference import using_references
from selfpatch.core.types import Tokens
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.config import ViTConfig
from selfpatch.models.backbones.positions import add_positions, sincos_positions
from selfpatch.models.layers.keyless_bias import KeylessBias, used_bias
from selfpatch.models.layers.lora import base_and_update
from selfpatch.ops.foreground import class_attention
from selfpatch.ops.linear import gelu_linear, norm_linear
from selfpatch.ops.rope import Rotation, rope_periods, rope_rotation, rotate_patches

MAX_PAIRED_TOKENS = 1024
"""Number of tokens of an image up to which the matrix of all pairs is formed if that is faster."""


class _Attention(Attention):
    """timm's attention in two steps, so that a block can compute the projection together with its norm."""

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, rotation: Rotation | None = None
    ) -> Tensor:
        if attn_mask is not None or is_causal:
            assert rotation is None
            return super().forward(x, attn_mask, is_causal)
        return self.attend(self.qkv(x), rotation)

    def attend(self, projected: Tensor, rotation: Rotation | None = None) -> Tensor:
        """Attend with projected queries, keys and values: [B, N, 3 * D] -> [B, N, D]."""
        query, key, value = projected.unflatten(-1, (3, self.num_heads, -1)).transpose(1, 3).unbind(2)  # [B, H, N, d]
        if rotation is not None:
            query, key = rotate_patches(query, rotation), rotate_patches(key, rotation)
        # On a CPU the fused attention is slow in bfloat16, backward above all.
        slow = projected.device.type == "cpu" and projected.dtype == torch.bfloat16
        if using_references() or (slow and projected.shape[1] <= MAX_PAIRED_TOKENS):
            # All pairs [B, H, N, N], as in the released code.
            attended = (query * self.scale @ key.transpose(-2, -1)).softmax(-1) @ value
        else:
            attended = F.scaled_dot_product_attention(query, key, value)
        return self.proj(attended.transpose(1, 2).flatten(2))


class _RotaryAttention(_Attention):
    """Attention whose queries and keys can be rotated, without bias of keys."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.qkv = KeylessBias(self.qkv.in_features, self.qkv.out_features)


class Rope(nn.Module):
    """Rotary positions. The periods are saved with the weights, because DINOv3's released ones are rounded to bf16.

    Attributes:
        periods: [d / 4] of a head.
        rescale: in training, all coordinates are multiplied by a factor between 1 / rescale and rescale, log-uniform,
            that is drawn for each block and batch; 1 draws none. DINOv3's student has 2, and its teacher 1.
    """

    periods: Tensor

    def __init__(self, head_dim: int, base: float = 100.0) -> None:
        super().__init__()
        self.rescale = 1.0
        self.register_buffer("periods", rope_periods(head_dim, base))

    def forward(self, h: int, w: int) -> Rotation:
        """Return the rotation of queries and keys on a grid of h x w patches."""
        scale = 1.0
        if self.training and self.rescale > 1:
            bound = math.log(self.rescale)
            scale = math.exp(torch.empty(()).uniform_(-bound, bound).item())
        return rope_rotation(h, w, self.periods, scale)


def disable_rope_rescale(module: nn.Module) -> None:
    """Stop drawing factors of rotary coordinates; the module may stay in training mode."""
    for part in module.modules():
        if isinstance(part, Rope):
            part.rescale = 1.0


class _Block(Block):
    """timm's block, which in training stores no outputs of norms or GELU."""

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, rotation: Rotation | None = None
    ) -> Tensor:
        if attn_mask is not None or is_causal:
            assert rotation is None
            return super().forward(x, attn_mask, is_causal)
        assert isinstance(self.attn, _Attention)
        differentiated = self.training and torch.is_grad_enabled()
        # A compiler decides by itself which tensors it stores.
        if using_references() or not differentiated or torch.compiler.is_compiling():
            x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), rotation=rotation)))
            return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        attended = self.attn.attend(_norm_linear(x, self.norm1, self.attn.qkv), rotation)
        x = x + self.drop_path1(self.ls1(attended))
        if isinstance(self.mlp, Mlp):
            inner = _norm_linear(x, self.norm2, self.mlp.fc1)
            fc2, low_rank = base_and_update(self.mlp.fc2)
            output = gelu_linear(inner, fc2.weight, fc2.bias, low_rank)
        else:
            output = self.mlp(self.norm2(x))
        return x + self.drop_path2(self.ls2(output))


def _norm_linear(x: Tensor, norm: nn.Module, linear: nn.Module) -> Tensor:
    assert isinstance(norm, nn.LayerNorm)
    base, low_rank = base_and_update(linear)
    return norm_linear(x, norm.weight, norm.bias, norm.eps, base.weight, used_bias(base), low_rank)


class ViT(Backbone):
    """A timm `VisionTransformer` with `dynamic_img_size`."""

    trunk: VisionTransformer
    config: ViTConfig

    def __init__(self, trunk: VisionTransformer, config: ViTConfig) -> None:
        super().__init__(trunk, config)
        self.embedding_stride, self.embedding_dim = config.patch_size, config.embed_dim
        self.has_class_token = trunk.cls_token is not None
        self._keeps_class_attention = False

    def encode(self, embedded: Tensor) -> Tokens:
        """Run embedded patches through the blocks and the final norm."""
        x, attention = self._block_input(embedded), None
        for number, (block, rotation) in enumerate(zip(self.trunk.blocks, self._rotations(embedded), strict=False), 1):
            if self._keeps_class_attention and number == self.num_layers:
                attention = self._class_attention(block, x, rotation, embedded)
            x = self._through(block, x, rotation)
        return self._tokens(x, embedded)._replace(class_attention=attention)

    def keep_class_attention(self) -> None:
        """Return the CLS token's attention with the tokens from now on; raise ValueError if there is no such token."""
        if not self.has_class_token:
            super().keep_class_attention()
        self._keeps_class_attention = True

    def _class_attention(self, block: nn.Module, x: Tensor, rotation: Rotation | None, embedded: Tensor) -> Tensor:
        """Return the CLS token's attention to the patches in a block with input x, [B, H, h, w] float32."""
        qkv = self._projected(block, x).unflatten(-1, (3, self.num_heads, -1))
        return self._map(class_attention(qkv, rotation).mT, embedded).permute(0, 3, 1, 2)

    def class_attention(self, images: Tensor, block: int = -1) -> Tensor:
        """Return the CLS token's attention to the patches in a block, [B, H, h, w]; arguments are as for `facet`."""
        embedded, block = self.embed(images), block % self.num_layers
        x = self._input_of(block, embedded)
        return self._class_attention(self.trunk.blocks[block], x, self.rotation(*embedded.shape[1:3]), embedded)

    def rotation(self, h: int, w: int) -> Rotation | None:
        """Return the rotation of queries and keys on a grid of patches, or None if the network has none."""
        return self.trunk.get_submodule("rope")(h, w) if self.config.rope else None

    def _rotations(self, embedded: Tensor) -> Iterator[Rotation | None]:
        """Yield the rotation of each block, all alike unless factors of the coordinates are drawn."""
        drawn = self.config.rope and self.training and self.trunk.get_submodule("rope").rescale != 1
        rotation = self.rotation(*embedded.shape[1:3])
        while True:
            yield rotation
            rotation = self.rotation(*embedded.shape[1:3]) if drawn else rotation

    def _input_of(self, block: int, embedded: Tensor) -> Tensor:
        """Return the input of a block, counted from 0, [B, prefix + N, D]."""
        x = self._block_input(embedded)
        for earlier, rotation in zip(self.trunk.blocks[:block], self._rotations(embedded), strict=False):
            x = self._through(earlier, x, rotation)
        return x

    def _through(self, block: nn.Module, x: Tensor, rotation: Any) -> Tensor:
        """Return a block's output; timm's own blocks know no rotation."""
        output: Tensor = block(x) if rotation is None else block(x, rotation=rotation)
        return output

    def _block_input(self, embedded: Tensor) -> Tensor:
        """Return the input of the first block, [B, prefix + N, D]."""
        positioned = add_positions(self.trunk, embedded, self.config.position_embedding)
        return self.trunk.norm_pre(self.trunk.patch_drop(positioned))

    def _tokens(self, raw: Tensor, embedded: Tensor) -> Tokens:
        normed = self.trunk.norm(raw)
        cls = normed[:, 0] if self.has_class_token else None
        return Tokens(cls, self._map(normed, embedded), self._map(raw, embedded))

    def _map(self, tokens: Tensor, embedded: Tensor) -> Tensor:
        return tokens[:, self.trunk.num_prefix_tokens :].unflatten(1, embedded.shape[1:3])

    def _outputs(self, embedded: Tensor, last: int) -> Iterator[Tensor]:
        """Yield the tokens [B, prefix + N, D] after each block up to the block `last`, before any norm."""
        x = self._block_input(embedded)
        for block, rotation in zip(self.trunk.blocks[:last], self._rotations(embedded), strict=False):
            x = self._through(block, x, rotation)
            yield x

    def _maps(self, embedded: Tensor, last: int) -> Iterator[tuple[int, Tensor]]:
        for layer, x in enumerate(self._outputs(embedded, last), start=1):
            yield layer, self._map(x, embedded)

    def repeated_blocks(self) -> Sequence[nn.Module]:
        """Return the blocks."""
        return list(self.trunk.blocks)

    def last_tokens(self, images: Tensor, blocks: int) -> list[Tokens]:
        """Return the tokens after each of the last `blocks` blocks, through the final norm (DINO's linear protocol).

        Images are [B, C, H, W], normalised.

        Raises:
            ValueError: there are not that many blocks.
        """
        if not 1 <= blocks <= self.num_layers:
            raise ValueError(f"the last {blocks} blocks are asked for; the network has {self.num_layers}")
        embedded = self.embed(images)
        outputs = deque(self._outputs(embedded, self.num_layers), maxlen=blocks)
        return [self._tokens(raw, embedded) for raw in outputs]

    def raw_tokens(self, images: Tensor, layers: Sequence[int]) -> list[tuple[Tensor | None, Tensor]]:
        """Return the CLS token [B, D], None if there is none, and patches [B, h, w, D] after blocks, before any norm.

        Blocks count from 1 and rise. Images are [B, C, H, W], normalised.
        """
        embedded = self.embed(images)
        outputs = enumerate(self._outputs(embedded, max(layers)), start=1)
        return [(x[:, 0] if self.has_class_token else None, self._map(x, embedded)) for i, x in outputs if i in layers]

    def facet(self, images: Tensor, name: Literal["query", "key", "value"], block: int = -1) -> Tensor:
        """Return queries, keys or values of a block's attention (LOST, arXiv 2109.14279; arXiv 2112.05814).

        Images are [B, C, H, W], normalised; the result is [B, h, w, D] of the patches, heads concatenated, before any
        rotation. Blocks below 0 count from the end.
        """
        embedded, block = self.embed(images), block % self.num_layers
        projected = self._projected(self.trunk.blocks[block], self._input_of(block, embedded))
        return self._map(projected.chunk(3, dim=-1)[("query", "key", "value").index(name)], embedded)

    def _projected(self, block: nn.Module, x: Tensor) -> Tensor:
        """Return queries, keys and values [B, N, 3 * D] of a block's attention."""
        projected: Tensor = block.get_submodule("attn.qkv")(block.get_submodule("norm1")(x))
        return projected

    def layer_of(self, name: str) -> int:
        """Return the number of a parameter's block, 0 for the embedding, `num_layers` + 1 for the final norm."""
        _, part, *rest = name.split(".")
        if part == "blocks":
            return 1 + int(rest[0])
        return self.num_layers + 1 if part == "norm" else 0

    @torch.no_grad()
    def draw_xavier_weights(self) -> None:
        """Draw the weights of linear layers anew, Xavier-uniform, as MoCo-v3's released code does (arXiv 2104.02057).

        Query, key and value count as layers of their own, the patch projection as one over all values of a patch; the
        deviation of the CLS token is 1e-6.
        """
        width, projection = self.config.embed_dim, self.trunk.get_submodule("patch_embed.proj")
        for name, module in self.trunk.named_modules():
            if isinstance(module, nn.Linear) or module is projection:
                weight = module.get_parameter("weight").flatten(1)
                for part in weight.split(width) if name.endswith("attn.qkv") else [weight]:
                    nn.init.xavier_uniform_(part)
                if module.bias is not None:
                    nn.init.zeros_(module.get_parameter("bias"))
        if self.trunk.cls_token is not None:
            nn.init.normal_(self.trunk.cls_token, std=1e-6)

    def rescale_rope(self, largest: float) -> None:
        """Draw factors up to `largest` of the rotary coordinates in training, see `Rope`.

        Raises:
            ValueError: the positions are not rotary.
        """
        if not self.config.rope:
            raise ValueError(
                f"backbone.rope_rescale is {largest}, but this ViT has no rotary positions; leave it out, or use "
                "vit_small_dinov3 or another of DINOv3's"
            )
        rope = self.trunk.get_submodule("rope")
        assert isinstance(rope, Rope)
        rope.rescale = largest

    def fix_positions(self) -> None:
        """Replace the learned position embeddings by fixed sines and cosines."""
        assert self.trunk.pos_embed is not None
        positions = sincos_positions(self.config.grid, self.config.embed_dim)
        with torch.no_grad():
            self.trunk.pos_embed.zero_()  # nothing is added to the CLS token
            self.trunk.pos_embed[0, -len(positions) :] = positions
        self.trunk.pos_embed.requires_grad_(False)


def build_vit(config: ViTConfig, *, drop_path: float = 0.0) -> ViT:
    """Build a freshly initialised vision transformer."""
    gated = config.mlp == "swiglu"
    mlp_layer: Any = SwiGLUPacked if gated else Mlp
    first_width = config.inner_width * (2 if gated else 1)  # the first layer of a gated MLP has both halves
    attention: Any = _RotaryAttention if config.rope else _Attention
    trunk = VisionTransformer(
        img_size=config.grid * config.patch_size,
        patch_size=config.patch_size,
        in_chans=config.in_channels,
        num_classes=0,
        global_pool="token" if config.class_token else "",
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=(first_width + 0.5) / config.embed_dim,  # timm rounds the product down
        class_token=config.class_token,
        reg_tokens=config.num_registers,
        no_embed_class=config.num_registers > 0,
        pos_embed="none" if config.rope else "learn",
        final_norm=config.final_norm,
        init_values=1e-5 if config.layer_scale else None,
        mlp_layer=mlp_layer,
        act_layer=nn.SiLU if gated else None,  # timm's default, GELU, would reach the gate
        dynamic_img_size=True,
        drop_path_rate=drop_path,
        norm_layer=partial(nn.LayerNorm, eps=config.eps),
        attn_layer=attention,
        block_fn=_Block,
    )
    if trunk.cls_token is not None:
        nn.init.trunc_normal_(trunk.cls_token, std=0.02)  # timm's 1e-6 is not what DINO starts from
    if config.rope:
        trunk.add_module("rope", Rope(config.embed_dim // config.num_heads, config.rope_base))
    return ViT(trunk, config)
