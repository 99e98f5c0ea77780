"""Backbones by name or configuration: our ViTs, Swins, ResNets and ConvNeXts, and timm's.

A new family is a `BackboneConfig` in config.py, a module like vit.py, and its branches below.
"""

import contextlib
import difflib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

import timm
import torch
from timm.layers import GlobalResponseNormMlp, Mlp, get_act_layer
from timm.models.convnext import ConvNeXt as TimmConvNeXt
from timm.models.eva import Eva as TimmEva
from timm.models.resnet import Bottleneck
from timm.models.resnet import ResNet as TimmResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from selfpatch.core.hub_connection import reading_cache_without_connection
from selfpatch.core.text import one_line
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.config import AnyBackboneConfig, ConvNeXtConfig, ResNetConfig, SwinConfig, ViTConfig
from selfpatch.models.backbones.convnext import ConvNeXt, build_convnext
from selfpatch.models.backbones.convnext_keys import from_any
from selfpatch.models.backbones.dinov3_keys import from_timm
from selfpatch.models.backbones.eva import Eva
from selfpatch.models.backbones.resnet import ResNet, build_resnet
from selfpatch.models.backbones.swin import Swin, build_swin
from selfpatch.models.backbones.vit import ViT, build_vit
from selfpatch.ops.images import IMAGENET_MEAN, IMAGENET_STD

_DINOV3: dict[str, Any] = {"rope": True, "num_registers": 4, "layer_scale": True}

MODELS: dict[str, AnyBackboneConfig] = {
    "vit_tiny": ViTConfig(embed_dim=192, depth=12, num_heads=3),
    "vit_small": ViTConfig(embed_dim=384, depth=12, num_heads=6),
    "vit_base": ViTConfig(embed_dim=768, depth=12, num_heads=12),
    "vit_large": ViTConfig(embed_dim=1024, depth=24, num_heads=16),
    "vit_huge": ViTConfig(embed_dim=1280, depth=32, num_heads=16),
    "vit_giant": ViTConfig(embed_dim=1536, depth=40, num_heads=24, mlp="swiglu", layer_scale=True),
    "vit_small_dinov3": ViTConfig(embed_dim=384, depth=12, num_heads=6, **_DINOV3),
    "vit_base_dinov3": ViTConfig(embed_dim=768, depth=12, num_heads=12, **_DINOV3),
    "vit_large_dinov3": ViTConfig(embed_dim=1024, depth=24, num_heads=16, **_DINOV3),
    "swin_tiny": SwinConfig(embed_dim=96, depths=(2, 2, 6, 2), first_heads=3),
    "swin_small": SwinConfig(embed_dim=96, depths=(2, 2, 18, 2), first_heads=3),
    "swin_base": SwinConfig(embed_dim=128, depths=(2, 2, 18, 2), first_heads=4),
    "resnet50": ResNetConfig(depths=(3, 4, 6, 3)),
    "convnext_tiny": ConvNeXtConfig(embed_dim=96, depths=(3, 3, 9, 3)),
    "convnext_small": ConvNeXtConfig(embed_dim=96, depths=(3, 3, 27, 3)),
    "convnext_base": ConvNeXtConfig(embed_dim=128, depths=(3, 3, 27, 3)),
    "convnext_large": ConvNeXtConfig(embed_dim=192, depths=(3, 3, 27, 3)),
}
"""Backbones that are built here (DeiT, arXiv 2012.12877; ViT, 2010.11929, table 1; ViT-g of DINOv2, 2304.07193; Swin,
2103.14030; ResNet, 1512.03385; ConvNeXt, 2201.03545; DINOv3, 2508.10104, with rotary positions and four register
tokens).

Any other name is a timm model.
"""

_FAMILIES: dict[str, tuple[type[Backbone], Callable[..., Backbone]]] = {
    "vit": (ViT, build_vit),
    "swin": (Swin, build_swin),
    "resnet": (ResNet, build_resnet),
    "convnext": (ConvNeXt, build_convnext),
}
_FIELDS = {
    ("vit", "registers"): "num_registers",
    ("swin", "num_heads"): "first_heads",
    ("resnet", "embed_dim"): "width",
}
"""Fields of a family that have another name than the setting of `BackboneOverrides`."""


def named_backbone_config(
    name: str, *, grid: int | None = None, position_embedding: str | None = None, **settings: Any
) -> AnyBackboneConfig:
    """Return the configuration of a model of `MODELS`; the name decides values that are None.

    `BackboneOverrides` documents the settings; other fields of the family's configuration may be given too. Grid and
    position embedding are for a ViT; other families have no positions and ignore them.

    Raises:
        ValueError: the family has no such setting, or the width cannot be split into the heads.
    """
    config = MODELS[name]
    if isinstance(config, ViTConfig):
        settings |= {"grid": grid, "position_embedding": position_embedding}
    known = [field.name for field in fields(config)]
    changes = {}
    for setting, value in settings.items():
        field = _FIELDS.get((config.family, setting), setting)
        if value is not None and field not in known:
            label = setting if setting == "patch_size" else f"backbone.{setting}"
            raise ValueError(f"{label} is {value}, but the model {name!r} has no such setting; leave it out")
        if value is not None:
            changes[field] = value
    config = replace(config, **changes)
    if isinstance(config, ViTConfig | SwinConfig):
        check_heads(config.embed_dim, config.num_heads if isinstance(config, ViTConfig) else config.first_heads)
    return config


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
    _, build = _FAMILIES[config.family]
    return build(config, drop_path=drop_path)


def build_timm(
    name: str,
    *,
    pretrained: bool = False,
    state: Mapping[str, Tensor] | None = None,
    drop_path: float = 0.0,
    config: AnyBackboneConfig | None = None,
    in_channels: int = 3,
) -> Backbone:
    """Build any ViT, Swin, ResNet or ConvNeXt of timm, with position embeddings interpolated timm's way.

    Args:
        name: timm's name of the model.
        pretrained: load timm's weights.
        state: tensors of a file of timm's with weights of the model, to load in their place.
        drop_path: stochastic depth rate.
        config: configuration of an earlier such model, whose grid of positions and final norm to rebuild.
        in_channels: number of channels, if there is no `config`.

    Raises:
        ValueError: timm has no such model, it is of another family, or its weights cannot be fetched.
    """
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(["vit_*", "swin_*", "resnet*", "convnext*"]), n=3)
        hint = f", e.g. {', '.join(close)}" if close else ""
        raise ValueError(f"unknown model {name!r}; use one of {', '.join(MODELS)}, or a name of timm's{hint}")
    channels = config.in_channels if config is not None else in_channels
    trunk = _create(name, pretrained, drop_path, config, channels, state)
    if isinstance(trunk, TimmEva) and "_dinov3" in name:
        return _from_eva(trunk, drop_path)
    if isinstance(trunk, TimmConvNeXt):
        return _from_convnext(trunk, name, drop_path)
    found = _config_of(trunk, name)
    if config is not None:
        found = replace(found, mean=config.mean, std=config.std)
        if not isinstance(found, ResNetConfig) and not isinstance(config, ResNetConfig) and not config.final_norm:
            trunk.norm = nn.Identity()
            found = replace(found, final_norm=False)
    backbone_class, _ = (Eva, None) if isinstance(trunk, TimmEva) else _FAMILIES[found.family]
    return backbone_class(trunk, found)


def timm_activation(name: str) -> str | None:
    """Return the activation of the MLPs of a model of timm's, e.g. `gelu_tanh`; None if there is no such model.

    No tensor shows it. A gate is none, as tensors show it.
    """
    if not timm.is_model(name):
        return None
    with torch.device("meta"):
        trunk = timm.create_model(name)
    kinds = {type(part.act) for part in trunk.modules() if isinstance(part, (Mlp, GlobalResponseNormMlp))}
    names = {nn.GELU: "gelu"} | {get_act_layer(act): act for act in ("gelu", "gelu_tanh", "quick_gelu", "silu")}
    return next((names.get(kind, kind.__name__) for kind in kinds), None)


def has_timms_keys(config: AnyBackboneConfig) -> bool:
    """Return whether a network is one of timm's whose tensors have other names than those of our ViTs."""
    with torch.device("meta"):
        return config.timm_model is not None and isinstance(build_backbone(config), Eva)


def _from_eva(trunk: TimmEva, drop_path: float) -> ViT:
    """Return our ViT with the weights and rotations of a DINOv3 ViT of timm's, whose own class is another."""
    first: Any = trunk.blocks[0]
    state = from_timm(trunk.state_dict()) | {"rope.periods": trunk.get_buffer("rope.periods")}
    vit = build_vit(
        ViTConfig(
            embed_dim=trunk.embed_dim,
            depth=len(trunk.blocks),
            num_heads=first.attn.num_heads,
            patch_size=trunk.patch_embed.patch_size[0],
            grid=trunk.patch_embed.grid_size[0],
            mlp="gelu" if isinstance(first.mlp, Mlp) else "swiglu",
            mlp_width=first.mlp.fc2.in_features,
            **_common(trunk),
            **_DINOV3,
        ),
        drop_path=drop_path,
    )
    vit.trunk.load_state_dict(state)
    return vit


def _from_convnext(trunk: TimmConvNeXt, name: str, drop_path: float) -> ConvNeXt:
    """Return our ConvNeXt with the weights of timm's, whose final norm is part of its head.

    Raises:
        ValueError: it is none of the published kind, which embeds patches and averages before its final norm.
    """
    stem: Any = trunk.stem
    stages: Any = trunk.stages
    block = stages[0].blocks[0]
    config = ConvNeXtConfig(
        embed_dim=stem[0].out_channels,
        depths=tuple(len(stage.blocks) for stage in stages),
        layer_scale=block.gamma is not None,
        response_norm=hasattr(block.mlp, "grn"),
        norm_eps=stem[-1].eps,
        **_common(trunk),
    )
    convnext = build_convnext(config, drop_path=drop_path)
    try:
        if not isinstance(stem[-1], nn.LayerNorm):
            raise ValueError("its norms are no layer norms")
        convnext.trunk.load_state_dict(
            {k: x for k, x in from_any(trunk.state_dict()).items() if not k.startswith("head.")}
        )
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{name!r} is a ConvNeXt of another kind than the published ones ({one_line(error)}); use e.g. "
            "convnext_tiny or convnextv2_tiny"
        ) from None
    return convnext


def _create(
    name: str,
    pretrained: bool,
    drop_path: float,
    config: AnyBackboneConfig | None,
    in_channels: int,
    state: Mapping[str, Tensor] | None = None,
) -> Any:
    """Make a timm model that takes any image size and has no pool."""
    options: dict[str, Any] = {"num_classes": 0, "drop_path_rate": drop_path, "in_chans": in_channels}
    if state is not None:
        without_head = {key: x for key, x in state.items() if not key.startswith(("head.", "head_dist."))}
        options["pretrained_cfg_overlay"] = {"state_dict": without_head, "source": "", "file": None}
    if name.startswith("swin"):
        options["strict_img_size"] = False
    elif not timm.models.is_model_in_modules(name.partition(".")[0], ("resnet", "convnext")):
        options["dynamic_img_size"] = True
        if isinstance(config, ViTConfig):
            options["img_size"] = config.grid * config.patch_size
    try:
        with reading_cache_without_connection() if pretrained else contextlib.nullcontext():
            trunk: Any = timm.create_model(name, pretrained=pretrained or state is not None, **options)
        trunk.pretrained_cfg.pop("state_dict", None)  # it would be kept and copied with the network
    except OSError as error:
        raise ValueError(
            f"the weights of timm's {name!r} cannot be fetched ({type(error).__name__}); "
            "check the connection, or give a file"
        ) from error
    except (TypeError, RuntimeError) as error:
        raise ValueError(
            f"timm cannot make {name!r} as a ViT, Swin, ResNet or ConvNeXt of any image size: {one_line(error)}"
        ) from error
    if issubclass(type(trunk), (VisionTransformer, TimmEva)):
        if not isinstance(trunk.fc_norm, nn.Identity):  # a ViT that averages its tokens has its final norm after that
            trunk.norm, trunk.fc_norm = trunk.fc_norm, nn.Identity()
        trunk.attn_pool = None
    return trunk


def _common(trunk: Any) -> dict[str, Any]:
    """Return the channels of a model of timm's, and how it normalises them."""
    expected = timm.data.resolve_model_data_config(trunk)
    return {
        "in_channels": next(part.in_channels for part in trunk.modules() if isinstance(part, nn.Conv2d)),
        "mean": tuple(expected.get("mean", IMAGENET_MEAN)),
        "std": tuple(expected.get("std", IMAGENET_STD)),
    }


def _config_of(trunk: Any, name: str) -> AnyBackboneConfig:
    """Return the configuration that describes a model of timm's."""
    common = _common(trunk) | {"timm_model": name}
    cls = type(trunk)
    if issubclass(type(trunk), (VisionTransformer, TimmEva)):
        return ViTConfig(
            embed_dim=trunk.embed_dim,
            depth=len(trunk.blocks),
            num_heads=trunk.blocks[0].attn.num_heads,
            patch_size=trunk.patch_embed.patch_size[0],
            grid=trunk.patch_embed.grid_size[0],
            class_token=trunk.cls_token is not None,
            num_registers=0 if trunk.reg_token is None else trunk.reg_token.shape[1],
            final_norm=not isinstance(trunk.norm, nn.Identity),
            layer_scale=any("gamma" in parameter for parameter, _ in trunk.blocks[0].named_parameters()),
            position_embedding="size",
            **common,
        )
    if issubclass(cls, SwinTransformer):
        first_block, depths = trunk.layers[0].blocks[0], tuple(len(stage.blocks) for stage in trunk.layers)
        heads, window = first_block.attn.num_heads, first_block.window_size[0]
        return SwinConfig(embed_dim=trunk.embed_dim, depths=depths, first_heads=heads, window=window, **common)
    if issubclass(cls, TimmResNet) and isinstance(trunk.layer1[0], Bottleneck):
        stages = (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4)
        return ResNetConfig(depths=tuple(len(stage) for stage in stages), **common)
    raise ValueError(
        f"{name!r} is a {cls.__name__}; a ViT (vit_*, deit_*, eva02_*), a ConvNeXt, a Swin or a ResNet of bottlenecks "
        "is needed"
    )
