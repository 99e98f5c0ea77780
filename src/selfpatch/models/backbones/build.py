"""Backbones by name or configuration: our ViTs, Swins and ResNets, and those of timm.

A new family is a `BackboneConfig` in config.py, a module like vit.py, and its branches below.
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
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.config import AnyBackboneConfig, ResNetConfig, SwinConfig, ViTConfig
from selfpatch.models.backbones.resnet import ResNet, build_resnet
from selfpatch.models.backbones.swin import Swin, build_swin
from selfpatch.models.backbones.vit import ViT, build_vit
from selfpatch.ops.images import IMAGENET_MEAN, IMAGENET_STD

MODELS = (*vit.SIZES, *swin.SIZES, *resnet.SIZES)
"""Names of the backbones that are built here; any other name is a timm model."""


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
    """Return the configuration of a model of `MODELS`; values that are None are as the name says.

    `BackboneOverrides` documents the arguments; `common` are other fields of the family's configuration.

    Raises:
        ValueError: the family has no such setting, or the width cannot be split into the heads.
    """
    if name in vit.SIZES:
        _refuse(name, depths=depths)
        width, blocks, heads = vit.SIZES[name]
        check_heads(embed_dim or width, num_heads or heads)
        return ViTConfig(
            embed_dim=embed_dim or width,
            depth=depth or blocks,
            num_heads=num_heads or heads,
            patch_size=patch_size or 16,
            grid=grid or 14,
            **common,
        )
    common.pop("position_embedding", None)  # neither of the others has any
    _refuse(name, patch_size=patch_size, depth=depth)
    if name in swin.SIZES:
        width, stages, heads = swin.SIZES[name]
        check_heads(embed_dim or width, num_heads or heads)
        return SwinConfig(
            embed_dim=embed_dim or width, depths=depths or stages, first_heads=num_heads or heads, **common
        )
    _refuse(name, num_heads=num_heads)
    return ResNetConfig(depths=depths or resnet.SIZES[name], width=embed_dim or 64, **common)


def _refuse(model: str, **settings: Any) -> None:
    for name, value in settings.items():
        if value is not None:
            setting = name if name == "patch_size" else f"backbone.{name}"
            raise ValueError(f"{setting} is {value}, but the model {model!r} has no such setting; leave it out")


def check_heads(width: int, heads: int) -> None:
    """Raise ValueError if the width cannot be split into that many attention heads."""
    if width % heads:
        raise ValueError(f"width {width} cannot be split into {heads} attention heads; change backbone.num_heads")


def build_backbone(config: AnyBackboneConfig, *, drop_path: float = 0.0) -> Backbone:
    """Build a freshly initialised backbone.

    Raises:
        ValueError: as `build_timm`.
    """
    if config.timm_model is not None:
        return build_timm(config.timm_model, drop_path=drop_path, config=config)
    if isinstance(config, ViTConfig):
        return build_vit(config, drop_path=drop_path)
    if isinstance(config, SwinConfig):
        return build_swin(config, drop_path=drop_path)
    return build_resnet(config, drop_path=drop_path)


def build_timm(
    name: str,
    *,
    pretrained: bool = False,
    drop_path: float = 0.0,
    config: AnyBackboneConfig | None = None,
    in_channels: int = 3,
) -> Backbone:
    """Build any ViT, Swin or ResNet of timm, with position embeddings interpolated timm's way.

    Args:
        name: timm's name of the model.
        pretrained: load timm's weights.
        drop_path: stochastic depth rate.
        config: configuration of an earlier such model, whose grid of positions and final norm to rebuild.
        in_channels: number of channels, if there is no `config`.

    Raises:
        ValueError: timm has no such model, it is of another family, or its weights cannot be fetched.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(["vit_*", "swin_*", "resnet*"]), n=3)
        hint = f", e.g. {', '.join(close)}" if close else ""
        raise ValueError(f"unknown model {name!r}; use one of {', '.join(MODELS)}, or a name of timm's{hint}")
    trunk = _create(name, pretrained, drop_path, config, config.in_channels if config is not None else in_channels)
    found = _config_of(trunk, name)
    if config is not None:
        found = replace(found, mean=config.mean, std=config.std)
        if not isinstance(found, ResNetConfig) and not isinstance(config, ResNetConfig) and not config.final_norm:
            trunk.norm = nn.Identity()
            found = replace(found, final_norm=False)
    if isinstance(found, ViTConfig):
        return ViT(trunk, found)
    return Swin(trunk, found) if isinstance(found, SwinConfig) else ResNet(trunk, found)


def _create(name: str, pretrained: bool, drop_path: float, config: AnyBackboneConfig | None, in_channels: int) -> Any:
    options: dict[str, Any] = {"num_classes": 0, "drop_path_rate": drop_path, "in_chans": in_channels}
    if name.startswith("swin"):
        options["strict_img_size"] = False
    elif not name.startswith("resnet"):
        options["dynamic_img_size"] = True
        if isinstance(config, ViTConfig):
            options["img_size"] = config.grid * config.patch_size
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
        _remove_pool(trunk)
    return trunk


def _remove_pool(trunk: VisionTransformer) -> None:
    """Remove the pool; a ViT that averages its tokens has its final norm after it, which moves before it."""
    if not isinstance(trunk.fc_norm, nn.Identity):
        trunk.norm, trunk.fc_norm = trunk.fc_norm, nn.Identity()
    trunk.attn_pool = None  # type: ignore[assignment]  # as timm itself sets it where there is none


def _config_of(trunk: nn.Module, name: str) -> AnyBackboneConfig:
    """Return the configuration that describes a model of timm's."""
    expected = timm.data.resolve_model_data_config(trunk)
    first_layer = next(part for part in trunk.modules() if isinstance(part, nn.Conv2d))
    common: dict[str, Any] = {"timm_model": name, "in_channels": first_layer.in_channels}
    common |= {"mean": tuple(expected.get("mean", IMAGENET_MEAN)), "std": tuple(expected.get("std", IMAGENET_STD))}
    if isinstance(trunk, VisionTransformer):
        return _vit_config(trunk, common)
    if isinstance(trunk, SwinTransformer):
        return _swin_config(trunk, common)
    if isinstance(trunk, TimmResNet) and isinstance(trunk.get_submodule("layer1.0"), Bottleneck):
        stages = [trunk.get_submodule(f"layer{i}") for i in range(1, 5)]
        return ResNetConfig(depths=tuple(len(list(stage.children())) for stage in stages), **common)
    raise ValueError(
        f"{name!r} is a {type(trunk).__name__}; a ViT (vit_*, deit_*), a Swin or a ResNet of bottlenecks is needed"
    )


def _vit_config(trunk: VisionTransformer, common: Mapping[str, Any]) -> ViTConfig:
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


def _swin_config(trunk: SwinTransformer, common: Mapping[str, Any]) -> SwinConfig:
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
