"""Backbones: every one maps images to `Tokens`. The only module that knows timm."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention, DropPath
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from selfpatch.ops.images import IMAGENET_MEAN, IMAGENET_STD
from selfpatch.types import Tokens

SIZES = {"vit_tiny": (192, 12, 3), "vit_small": (384, 12, 6), "vit_base": (768, 12, 12), "vit_large": (1024, 24, 16)}
"""Width, depth and heads by name (DeiT, arXiv 2012.12877; ViT, arXiv 2010.11929)."""


@dataclass(frozen=True)
class ViTShape:
    """All that decides the parameters of a plain vision transformer, as DINO and its descendants release them."""

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int = 16
    grid: int = 14
    """Side of the stored grid of position embeddings."""
    class_token: bool = True
    final_norm: bool = True
    in_channels: int = 3
    position_embedding: Literal["released", "size"] = "released"
    timm_model: str | None = None
    """Name of the timm model that was built; the other fields then only describe it."""

    def to_dict(self) -> dict[str, int | str | bool | None]:
        return asdict(self)

    def for_pool(self) -> ViTShape:
        """The trunk below a pool that makes the image token from raw patches: no CLS token, no final norm."""
        return replace(self, class_token=self.class_token and self.timm_model is not None, final_norm=False)


class _Attention(Attention):
    """timm's attention; on the CPU under autocast in float32, for the bf16 backward pass is slow there."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x, attn_mask, is_causal)
        query, key, value = self.qkv(x).float().unflatten(-1, (3, self.num_heads, -1)).transpose(1, 3).unbind(2)
        with torch.autocast("cpu", enabled=False):
            attended = F.scaled_dot_product_attention(query, key, value)  # [B, H, N, d]
        return self.proj(attended.transpose(1, 2).flatten(2))


class _ReleasedPositions(VisionTransformer):
    """Position embeddings at other sizes exactly as the code of DINO, iBOT, SelfPatch and SERE interpolates them:
    bicubic, no antialias, by a scale factor with 0.1 added to the grid's side, which shifts the sampling coordinates a
    little."""

    def _pos_embed(self, x: Tensor) -> Tensor:
        B, h, w, D = x.shape
        assert self.pos_embed is not None
        prefix, grid = self.pos_embed[:, : self.num_prefix_tokens], self.pos_embed[:, self.num_prefix_tokens :]
        G = int(grid.shape[1] ** 0.5)
        if (h, w) != (G, G):
            square = grid.view(1, G, G, D).permute(0, 3, 1, 2)
            square = F.interpolate(square, scale_factor=((h + 0.1) / G, (w + 0.1) / G), mode="bicubic")
            grid = square.permute(0, 2, 3, 1).reshape(1, h * w, D)
        x = x.view(B, h * w, D) + grid
        if self.cls_token is not None:
            x = torch.cat([(self.cls_token + prefix).expand(B, -1, -1), x], dim=1)
        return self.pos_drop(x)


class Backbone(nn.Module):
    """A timm vision transformer as `images [B, C, H, W] -> Tokens`.

    Args:
        trunk: a timm `VisionTransformer` with `dynamic_img_size`.
        shape: what it was built from.
    """

    def __init__(self, trunk: VisionTransformer, shape: ViTShape) -> None:
        super().__init__()
        self.trunk = trunk
        self.shape = shape
        self.dim: int = trunk.embed_dim
        self.patch_size: int = trunk.patch_embed.patch_size[0]
        self.num_heads = _num_heads(trunk)
        self.has_class_token = trunk.cls_token is not None
        expected = timm.data.resolve_model_data_config(trunk) if shape.timm_model else {}
        self.mean: tuple[float, ...] = expected.get("mean", IMAGENET_MEAN)
        self.std: tuple[float, ...] = expected.get("std", IMAGENET_STD)

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError where the patch does not divide the image."""
        p = self.patch_size
        for side in (height, width):
            if side % p or side < p:
                nearest = max(p, round(side / p) * p)
                raise ValueError(
                    f"patch size {p} does not divide the image side {side}; use a multiple of {p}, e.g. {nearest}"
                )

    def forward(self, images: Tensor) -> Tokens:
        """Images [B, C, H, W], normalised, with sides that the patch divides.

        Raises:
            ValueError: the patch does not divide a side.
        """
        self.check_size(*images.shape[-2:])
        trunk = self.trunk
        x = trunk.patch_embed(images)  # [B, h, w, D]
        h, w = x.shape[1:3]
        raw = trunk.blocks(trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(x))))  # [B, prefix + N, D]
        normed = trunk.norm(raw)
        prefix = trunk.num_prefix_tokens

        def to_map(tokens: Tensor) -> Tensor:
            return tokens[:, prefix:].unflatten(1, (h, w))

        image = normed[:, 0] if self.has_class_token else None
        return Tokens(image, to_map(normed), to_map(raw))


def build_backbone(shape: ViTShape, *, drop_path: float = 0.0) -> Backbone:
    """A freshly initialised backbone.

    Raises:
        ValueError: as `build_timm`.
    """
    if shape.timm_model is not None:
        image_size = shape.grid * shape.patch_size
        return build_timm(shape.timm_model, image_size=image_size, drop_path=drop_path, final_norm=shape.final_norm)
    kind = _ReleasedPositions if shape.position_embedding == "released" else VisionTransformer
    trunk = kind(
        img_size=shape.grid * shape.patch_size,
        patch_size=shape.patch_size,
        in_chans=shape.in_channels,
        num_classes=0,
        global_pool="token" if shape.class_token else "",
        embed_dim=shape.embed_dim,
        depth=shape.depth,
        num_heads=shape.num_heads,
        class_token=shape.class_token,
        final_norm=shape.final_norm,
        dynamic_img_size=True,
        drop_path_rate=drop_path,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        attn_layer=_Attention,
    )
    if trunk.cls_token is not None:
        nn.init.trunc_normal_(trunk.cls_token, std=0.02)  # timm's 1e-6 is not what DINO starts from
    return Backbone(trunk, shape)


def build_timm(
    name: str,
    *,
    pretrained: bool = False,
    image_size: int | None = None,
    drop_path: float = 0.0,
    final_norm: bool = True,
) -> Backbone:
    """Any plain ViT of timm by its name, with position embeddings interpolated timm's way.

    Args:
        final_norm: False takes the trunk's final norm off.

    Raises:
        ValueError: timm has no such model, or it is no plain ViT, or its weights cannot be fetched.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models("vit_*"), n=3)
        hint = f", e.g. {', '.join(close)}" if close else ""
        raise ValueError(f"unknown model {name!r}; use one of {', '.join(SIZES)}, or the name of a timm ViT{hint}")
    options: dict[str, Any] = {"num_classes": 0, "dynamic_img_size": True, "drop_path_rate": drop_path}
    if image_size is not None:
        options["img_size"] = image_size
    try:
        trunk = timm.create_model(name, pretrained=pretrained, **options)
    except (TypeError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"timm cannot make {name!r} as a ViT of any image size: {reason}") from error
    if not isinstance(trunk, VisionTransformer):
        raise ValueError(f"{name!r} is a {type(trunk).__name__}; a plain vision transformer (vit_*, deit_*) is needed")
    if not final_norm:
        trunk.norm = nn.Identity()
    shape = ViTShape(
        embed_dim=trunk.embed_dim,
        depth=len(trunk.blocks),
        num_heads=_num_heads(trunk),
        patch_size=trunk.patch_embed.patch_size[0],
        grid=trunk.patch_embed.grid_size[0],
        class_token=trunk.cls_token is not None,
        final_norm=final_norm,
        position_embedding="size",
        timm_model=name,
    )
    return Backbone(trunk, shape)


def _num_heads(trunk: VisionTransformer) -> int:
    heads = trunk.get_submodule("blocks.0.attn").num_heads
    assert isinstance(heads, int)
    return heads


def disable_drop_path(module: nn.Module) -> None:
    """Sets every drop path rate to 0; the module may stay in training mode."""
    for part in module.modules():
        if isinstance(part, DropPath):
            part.drop_prob = 0.0
