"""Plain vision transformers."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import torch
from timm.layers import Mlp, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from selfpatch.core.reference import fast_path_of
from selfpatch.core.types import Tokens
from selfpatch.models.backbones.base import Backbone, Batch
from selfpatch.models.backbones.config import ViTConfig
from selfpatch.models.backbones.packing import Draws, Packing, draw_paths
from selfpatch.models.backbones.positions import add_positions, sincos_positions
from selfpatch.models.backbones.vit_block import RotaryAttention, ViTAttention, ViTBlock
from selfpatch.ops.foreground import class_attention
from selfpatch.ops.rope import Rotation, rope_periods, rope_rotation


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


class ViT(Backbone):
    """A timm `VisionTransformer` with `dynamic_img_size`."""

    trunk: VisionTransformer
    config: ViTConfig

    def __init__(self, trunk: VisionTransformer, config: ViTConfig) -> None:
        super().__init__(trunk, config)
        self.embedding_stride, self.embedding_dim = config.patch_size, config.embed_dim
        self.has_class_token = trunk.cls_token is not None
        self.packable = all(isinstance(block, ViTBlock) for block in trunk.blocks)  # timm's own know one size
        self._keeps_class_attention = False

    def encode(self, embedded: Tensor) -> Tokens:
        """Run embedded patches through the blocks and the final norm."""
        x, attention = self._block_input(embedded), None
        for number, (block, rotation) in enumerate(zip(self.trunk.blocks, self._rotations(embedded), strict=False), 1):
            if self._keeps_class_attention and number == self.num_layers:
                attention = self._class_attention(block, x, rotation, embedded)
            x = self._through(block, x, rotation)
        return self._tokens(x, embedded)._replace(class_attention=attention)

    def forward_packed_reference(self, batches: Sequence[Batch]) -> list[Tokens]:
        """Compute `forward_packed` in a pass for each size."""
        return self.forward_each(batches)

    @fast_path_of(forward_packed_reference)
    def forward_packed(self, batches: Sequence[Batch]) -> list[Tokens]:
        """Encode batches of images of several sizes as one sequence of tokens, see `packing`."""
        embedded = [self.embed_visible(images, mask) for images, mask in batches]
        inputs = [self._block_input(each) for each in embedded]
        # A batch draws for all blocks before the next batch does, as in separate passes.
        draws = [list(self._draws(each)) for each in embedded]
        packing = Packing(inputs, self.num_heads)
        x, rotation = packing.pack(inputs), None
        attention: list[Tensor | None] = [None] * len(batches)
        for number, (block, drawn) in enumerate(zip(self.trunk.blocks, zip(*draws, strict=True), strict=True), 1):
            if number == 1 or self._draws_rotations:
                rotation = packing.rotation([of_batch.rotation for of_batch in drawn])
            if self._keeps_class_attention and number == self.num_layers:
                parts = zip(packing.unpack(x), drawn, embedded, strict=True)
                attention = [self._class_attention(block, part, own.rotation, each) for part, own, each in parts]
            x = block(x, rotation=rotation, packed=packing.of_block(drawn))
        outputs = zip(packing.unpack(x), embedded, attention, strict=True)
        return [self._tokens(raw, each)._replace(class_attention=of_cls) for raw, each, of_cls in outputs]

    def _draws(self, embedded: Tensor) -> Iterator[Draws]:
        """Yield what is drawn for each block in a pass of embedded patches [B, h, w, D]."""
        for block, rotation in zip(self.trunk.blocks, self._rotations(embedded), strict=False):
            yield Draws(rotation, draw_paths(block, len(embedded), embedded.device))

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
        embedded, block = self.embed_visible(images), block % self.num_layers
        x = self._input_of(block, embedded)
        return self._class_attention(self.trunk.blocks[block], x, self.rotation(*embedded.shape[1:3]), embedded)

    def rotation(self, h: int, w: int) -> Rotation | None:
        """Return the rotation of queries and keys on a grid of patches, or None if the network has none."""
        return self.trunk.get_submodule("rope")(h, w) if self.config.rope else None

    @property
    def _draws_rotations(self) -> bool:
        """True if factors of the coordinates are drawn, so that each block has another rotation."""
        return self.config.rope and self.training and bool(self.trunk.get_submodule("rope").rescale != 1)

    def _rotations(self, embedded: Tensor) -> Iterator[Rotation | None]:
        """Yield the rotation of each block, all alike unless factors of the coordinates are drawn."""
        drawn, rotation = self._draws_rotations, self.rotation(*embedded.shape[1:3])
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
            raise ValueError(f"blocks is {blocks}, but the network has {self.num_layers}; use 1 to {self.num_layers}")
        embedded = self.embed_visible(images)
        outputs = deque(self._outputs(embedded, self.num_layers), maxlen=blocks)
        return [self._tokens(raw, embedded) for raw in outputs]

    def raw_tokens(self, images: Tensor, layers: Sequence[int]) -> list[tuple[Tensor | None, Tensor]]:
        """Return the CLS token [B, D], None if there is none, and patches [B, h, w, D] after blocks, before any norm.

        Blocks count from 1 and rise. Images are [B, C, H, W], normalised.
        """
        embedded = self.embed_visible(images)
        outputs = enumerate(self._outputs(embedded, max(layers)), start=1)
        return [(x[:, 0] if self.has_class_token else None, self._map(x, embedded)) for i, x in outputs if i in layers]

    def facet(self, images: Tensor, name: Literal["query", "key", "value"], block: int = -1) -> Tensor:
        """Return queries, keys or values of a block's attention (LOST, arXiv 2109.14279; arXiv 2112.05814).

        Images are [B, C, H, W], normalised; the result is [B, h, w, D] of the patches, heads concatenated, before any
        rotation. Blocks below 0 count from the end.
        """
        embedded, block = self.embed_visible(images), block % self.num_layers
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
    attention: Any = RotaryAttention if config.rope else ViTAttention
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
        block_fn=ViTBlock,
    )
    if trunk.cls_token is not None:
        nn.init.trunc_normal_(trunk.cls_token, std=0.02)  # timm's 1e-6 is not what DINO starts from
    if config.rope:
        trunk.add_module("rope", Rope(config.embed_dim // config.num_heads, config.rope_base))
    return ViT(trunk, config)
