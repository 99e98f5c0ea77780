"""The block of our ViTs: timm's, with fast paths, rotary positions, and images of several sizes at once."""

from typing import Any, NamedTuple

import torch
from timm.layers import Attention, Mlp
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from selfpatch.core.reference import using_references
from selfpatch.models.layers.keyless_bias import KeylessBias, used_bias
from selfpatch.models.layers.lora import base_and_update
from selfpatch.ops.attention import Groups, attention, packed_attention
from selfpatch.ops.linear import gelu_linear, norm_linear
from selfpatch.ops.rope import Rotation, rotate_patches


class Packed(NamedTuple):
    """Images whose tokens [T, D] a block gets as one sequence, see `packing`."""

    groups: Groups
    offsets: Tensor | None  # [images + 1] int32, if one kernel attends to all sizes
    kept: tuple[Tensor | None, Tensor | None]
    """[T, 1] factors of both residual branches that stochastic depth has drawn, 0 or 1 / (1 - rate)."""


class ViTAttention(Attention):
    """timm's attention in two steps, so that a block can compute the projection together with its norm."""

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        rotation: Rotation | None = None,
        packed: Packed | None = None,
    ) -> Tensor:
        """Attend with tokens [B, N, D], or packed, [T, D]; the same shape."""
        if attn_mask is not None or is_causal:
            assert rotation is None
            assert packed is None
            return super().forward(x, attn_mask, is_causal)
        return self.attend(self.qkv(x), rotation, packed)

    def attend(self, projected: Tensor, rotation: Rotation | None = None, packed: Packed | None = None) -> Tensor:
        """Attend with projected queries, keys and values: [B, N, 3 * D] -> [B, N, D], or packed, [T, 3 * D] -> [T, D].

        A rotation is that of the N patches of each image, or of all T tokens.
        """
        heads = projected.unflatten(-1, (3, self.num_heads, -1)).transpose(-4, -2)
        query, key, value = heads.unbind(-3)  # [B, H, N, d], or [H, T, d]
        if rotation is not None:
            query, key = rotate_patches(query, rotation), rotate_patches(key, rotation)
        if packed is None:
            attended = attention(query, key, value)
        else:
            attended = packed_attention(query, key, value, packed.groups, packed.offsets)
        return self.proj(attended.transpose(-3, -2).flatten(-2))


class RotaryAttention(ViTAttention):
    """Attention whose queries and keys can be rotated, without bias of keys."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.qkv = KeylessBias(self.qkv.in_features, self.qkv.out_features)


class ViTBlock(Block):
    """timm's block, which in training stores no outputs of norms or GELU."""

    def forward(
        self,
        x: Tensor,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        rotation: Rotation | None = None,
        packed: Packed | None = None,
    ) -> Tensor:
        """Return the tokens after the block, in the shape of x: [B, N, D], or [T, D] if they are `packed`."""
        if attn_mask is not None or is_causal:
            assert rotation is None
            assert packed is None
            return super().forward(x, attn_mask, is_causal)
        assert isinstance(self.attn, ViTAttention)
        differentiated = self.training and torch.is_grad_enabled()
        # A compiler decides by itself which tensors it stores.
        if using_references() or not differentiated or torch.compiler.is_compiling():
            attended = self.attn(self.norm1(x), rotation=rotation, packed=packed)
            x = x + self._dropped(self.ls1(attended), 0, packed)
            return x + self._dropped(self.ls2(self.mlp(self.norm2(x))), 1, packed)
        attended = self.attn.attend(_norm_linear(x, self.norm1, self.attn.qkv), rotation, packed)
        x = x + self._dropped(self.ls1(attended), 0, packed)
        if isinstance(self.mlp, Mlp):
            inner = _norm_linear(x, self.norm2, self.mlp.fc1)
            fc2, low_rank = base_and_update(self.mlp.fc2)
            output = gelu_linear(inner, fc2.weight, fc2.bias, low_rank)
        else:
            output = self.mlp(self.norm2(x))
        return x + self._dropped(self.ls2(output), 1, packed)

    def _dropped(self, output: Tensor, branch: int, packed: Packed | None) -> Tensor:
        """Apply stochastic depth to the output of residual branch 0 or 1."""
        if packed is None:
            return (self.drop_path1, self.drop_path2)[branch](output)
        kept = packed.kept[branch]
        return output if kept is None else output * kept.to(output.dtype)


def _norm_linear(x: Tensor, norm: nn.Module, linear: nn.Module) -> Tensor:
    assert isinstance(norm, nn.LayerNorm)
    base, low_rank = base_and_update(linear)
    return norm_linear(x, norm.weight, norm.bias, norm.eps, base.weight, used_bias(base), low_rank)
