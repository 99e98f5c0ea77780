"""Backbones: every one maps images to `Tokens`. The only package that knows timm's models.

A new family is a `Shape` in shapes.py, a module beside vit.py, and its rows below.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import timm
from timm.models.resnet import Bottleneck
from timm.models.resnet import ResNet as TimmResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from selfpatch.models.backbones import resnet, swin, vit
from selfpatch.models.backbones.base import Backbone, disable_drop_path
from selfpatch.models.backbones.config import (
    AnyBackboneConfig,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
    backbone_config_from_dict,
)
from selfpatch.models.backbones.resnet import ResNet, build_resnet
from selfpatch.models.backbones.swin import Swin, build_swin
from selfpatch.models.backbones.vit import ViT, build_vit
from selfpatch.ops.images import IMAGENET_MEAN, IMAGENET_STD

__all__ = [
    "MODELS",
    "AnyBackboneConfig",
    "Backbone",
    "ResNetConfig",
    "SwinConfig",
    "ViT",
    "ViTConfig",
    "build_backbone",
    "build_timm",
    "check_heads",
    "disable_drop_path",
    "named_backbone_config",
    "backbone_config_from_dict",
]

MODELS = (*vit.SIZES, *swin.SIZES, *resnet.SIZES)
"""Names of the backbones that are built here; every other one is timm's."""


def named_backbone_config(
    name: str,
    *,
    patch_size: int | None = None,
    grid: int | None = None,
    embed_dim: int | None = None,
    depth: int | None = None,
    depths: tuple[int, ...] | None = None,
    num_heads: int | None = None,
    **common: Any,
) -> AnyBackboneConfig:
    """The shape of a model of `MODELS`; None: as the name says.

    Args:
        embed_dim, num_heads: of the first stage where there are several.
        depth: blocks of a ViT.
        depths: blocks of each stage of a Swin or a ResNet.
        common: fields that the family's shape has.

    Raises:
        ValueError: the family has no such setting, or the numbers do not go together.
    """
    if name in vit.SIZES:
        _refuse(name, depths=depths)
        width, blocks, heads = vit.SIZES[name]
        shape = ViTConfig(
            embed_dim=embed_dim or width,
            depth=depth or blocks,
            num_heads=num_heads or heads,
            patch_size=patch_size or 16,
            grid=grid or 14,
            **common,
        )
        check_heads(shape.embed_dim, shape.num_heads)
        return shape
    common.pop("position_embedding", None)  # neither has any
    _refuse(name, patch_size=patch_size, depth=depth)
    if name in swin.SIZES:
        width, stages, heads = swin.SIZES[name]
        swin_shape = SwinConfig(
            embed_dim=embed_dim or width, depths=depths or stages, first_heads=num_heads or heads, **common
        )
        check_heads(swin_shape.embed_dim, swin_shape.first_heads)
        return swin_shape
    _refuse(name, num_heads=num_heads)
    return ResNetConfig(depths=depths or resnet.SIZES[name], width=embed_dim or 64, **common)


def _refuse(model: str, **settings: Any) -> None:
    for name, value in settings.items():
        if value is not None:
            setting = name if name == "patch_size" else f"backbone.{name}"
            raise ValueError(f"{setting} is {value}, but the model {model!r} has no such setting; leave it out")


def check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"width {width} cannot be split into {heads} attention heads; change backbone.num_heads")


def build_backbone(shape: AnyBackboneConfig, *, drop_path: float = 0.0) -> Backbone:
    """A freshly initialised backbone.

    Raises:
        ValueError: as `build_timm`.
    """
    if shape.timm_model is not None:
        return build_timm(shape.timm_model, drop_path=drop_path, shape=shape)
    if isinstance(shape, ViTConfig):
        return build_vit(shape, drop_path=drop_path)
    return (
        build_swin(shape, drop_path=drop_path)
        if isinstance(shape, SwinConfig)
        else build_resnet(shape, drop_path=drop_path)
    )


def build_timm(
    name: str,
    *,
    pretrained: bool = False,
    drop_path: float = 0.0,
    shape: AnyBackboneConfig | None = None,
    in_channels: int = 3,
) -> Backbone:
    """Any ViT, Swin or ResNet of timm by its name, with position embeddings interpolated timm's way.

    Args:
        shape: of such a model, to build it so again: with that grid of positions, with or without final norm.

    Raises:
        ValueError: timm has no such model, or it is of another family, or its weights cannot be fetched.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(["vit_*", "swin_*", "resnet*"]), n=3)
        hint = f", e.g. {', '.join(close)}" if close else ""
        raise ValueError(f"unknown model {name!r}; use one of {', '.join(MODELS)}, or a name of timm's{hint}")
    trunk = _create(name, pretrained, drop_path, shape, shape.in_channels if shape is not None else in_channels)
    found = _shape_of(trunk, name)
    if shape is not None:
        found = replace(found, mean=shape.mean, std=shape.std)
        if (
            isinstance(found, ViTConfig | SwinConfig)
            and isinstance(shape, ViTConfig | SwinConfig)
            and not shape.final_norm
        ):
            trunk.norm = nn.Identity()
            found = replace(found, final_norm=False)
    if isinstance(found, ViTConfig):
        return ViT(trunk, found)
    return Swin(trunk, found) if isinstance(found, SwinConfig) else ResNet(trunk, found)


def _create(name: str, pretrained: bool, drop_path: float, shape: AnyBackboneConfig | None, in_channels: int) -> Any:
    options: dict[str, Any] = {"num_classes": 0, "drop_path_rate": drop_path, "in_chans": in_channels}
    if name.startswith("swin"):
        options["strict_img_size"] = False
    elif not name.startswith("resnet"):
        options["dynamic_img_size"] = True
        if isinstance(shape, ViTConfig):
            options["img_size"] = shape.grid * shape.patch_size
    try:
        trunk = timm.create_model(name, pretrained=pretrained, **options)
    except OSError as error:
        raise ValueError(
            f"the weights of timm's {name!r} cannot be fetched ({type(error).__name__}); "
            "check the connection, or give a file"
        ) from error
    except (TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"timm cannot make {name!r} as a ViT, Swin or ResNet of any image size: {reason}") from error
    if isinstance(trunk, VisionTransformer):
        _take_off_pool(trunk)
    return trunk


def _take_off_pool(trunk: VisionTransformer) -> None:
    """A ViT that averages its tokens has its final norm behind the pool; one with an attention pool, parameters too."""
    if not isinstance(trunk.fc_norm, nn.Identity):
        trunk.norm, trunk.fc_norm = trunk.fc_norm, nn.Identity()
    trunk.attn_pool = None  # type: ignore[assignment]  # as timm itself sets it where there is none


def _shape_of(trunk: nn.Module, name: str) -> AnyBackboneConfig:
    """What describes a model of timm's."""
    expected = timm.data.resolve_model_data_config(trunk)
    first_layer = next(part for part in trunk.modules() if isinstance(part, nn.Conv2d))
    common: dict[str, Any] = {"timm_model": name, "in_channels": first_layer.in_channels}
    common |= {"mean": tuple(expected.get("mean", IMAGENET_MEAN)), "std": tuple(expected.get("std", IMAGENET_STD))}
    if isinstance(trunk, VisionTransformer):
        return _vit_shape(trunk, common)
    if isinstance(trunk, SwinTransformer):
        return _swin_shape(trunk, common)
    if isinstance(trunk, TimmResNet) and isinstance(trunk.get_submodule("layer1.0"), Bottleneck):
        stages = [trunk.get_submodule(f"layer{i}") for i in range(1, 5)]
        return ResNetConfig(depths=tuple(len(list(stage.children())) for stage in stages), **common)
    raise ValueError(
        f"{name!r} is a {type(trunk).__name__}; a ViT (vit_*, deit_*), a Swin or a ResNet of bottlenecks is needed"
    )


def _vit_shape(trunk: VisionTransformer, common: Mapping[str, Any]) -> ViTConfig:
    return ViTConfig(
        embed_dim=trunk.embed_dim,
        depth=len(trunk.blocks),
        num_heads=_attribute(trunk, "blocks.0.attn", "num_heads"),
        patch_size=trunk.patch_embed.patch_size[0],
        grid=trunk.patch_embed.grid_size[0],
        class_token=trunk.cls_token is not None,
        num_registers=0 if trunk.reg_token is None else trunk.reg_token.shape[1],
        final_norm=not isinstance(trunk.norm, nn.Identity),
        layer_scale="blocks.0.ls1.gamma" in trunk.state_dict(),
        position_embedding="size",
        **common,
    )


def _swin_shape(trunk: SwinTransformer, common: Mapping[str, Any]) -> SwinConfig:
    stages = range(trunk.num_layers)
    return SwinConfig(
        embed_dim=trunk.embed_dim,
        depths=tuple(len(list(trunk.get_submodule(f"layers.{i}.blocks").children())) for i in stages),
        first_heads=_attribute(trunk, "layers.0.blocks.0.attn", "num_heads"),
        window=_attribute(trunk, "layers.0.blocks.0", "window_size")[0],
        **common,
    )


def _attribute(trunk: nn.Module, module: str, name: str) -> Any:
    return getattr(trunk.get_submodule(module), name)
