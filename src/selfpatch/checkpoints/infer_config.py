"""The configuration of a backbone, inferred from the keys and shapes of a state dict."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import count, takewhile
from typing import Any

from torch import Tensor

from selfpatch.checkpoints.key_mapping import TRUNK
from selfpatch.core.text import counted
from selfpatch.models.backbones.config import (
    AnyBackboneConfig,
    ConvNeXtConfig,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
    backbone_config_from_dict,
)
from selfpatch.models.backbones.dinov3_keys import is_dinov3

_AXES = {
    "patch_embed.proj.weight": 4,
    "pos_embed": 3,
    "rope.periods": 1,
    "blocks.0.mlp.fc1.weight": 2,
    "blocks.0.mlp.fc2.weight": 2,
    "layers.0.blocks.0.attn.relative_position_bias_table": 2,
    "conv1.weight": 4,
    **{f"layer1.0.conv{i}.weight": 4 for i in (1, 2, 3)},
    "stem.0.weight": 4,
}
"""Number of axes of the tensors that tell of the architecture."""


def infer_backbone_config(state: Mapping[str, Tensor], source: str) -> AnyBackboneConfig:
    """Return the configuration of the backbone in a state dict with our keys.

    Raises:
        ValueError: it is not a plain ViT, a Swin, a ConvNeXt or a ResNet of bottlenecks.
    """
    trunk = {k.removeprefix(TRUNK): v for k, v in state.items() if k.startswith(TRUNK)}
    _require_shapes(trunk, source)
    return backbone_config_from_dict(_config(trunk, state, source).to_dict())  # checks ranges


def _require_shapes(trunk: Mapping[str, Tensor], source: str) -> None:
    """Raise ValueError if a tensor that tells of the architecture has another number of axes, or is empty."""
    for key, axes in _AXES.items():
        if key in trunk and (trunk[key].ndim != axes or not trunk[key].numel()):
            raise ValueError(
                f"{source} holds no plain ViT, Swin, ResNet or ConvNeXt: {key} has the shape "
                f"{list(trunk[key].shape)}, and {axes} axes are needed"
            )


def _config(trunk: Mapping[str, Tensor], state: Mapping[str, Tensor], source: str) -> AnyBackboneConfig:
    embedding = trunk.get("patch_embed.proj.weight")
    if "layer1.0.conv1.weight" in trunk:
        return _resnet_config(trunk, source)
    if {"stem.0.weight", "stages.0.blocks.0.conv_dw.weight"} <= trunk.keys():
        return _convnext_config(trunk)
    if embedding is not None:
        if "layers.0.blocks.0.attn.qkv.weight" in trunk:
            return _swin_config(trunk, embedding, source)
        if is_dinov3(trunk) and "blocks.0.mlp.fc2.weight" in trunk:
            return _dinov3_config(trunk, embedding)
        if "pos_embed" in trunk:
            return _vit_config(trunk, embedding, source)
    raise ValueError(f"{source} holds no plain ViT, Swin, ResNet or ConvNeXt; its keys are {first_few(tuple(state))}")


def _vit_config(trunk: Mapping[str, Tensor], embedding: Tensor, source: str) -> ViTConfig:
    class_token, registers = "cls_token" in trunk, _num_registers(trunk)
    patches = trunk["pos_embed"].shape[1] - (class_token and not registers)  # with registers, CLS has no position
    grid = math.isqrt(patches)
    if grid * grid != patches:
        raise ValueError(f"{source} has position embeddings for {counted(patches, 'patch')}, which is no square grid")
    config = ViTConfig(
        num_heads=usual_num_heads(embedding.shape[0], gated=_is_gated(trunk)),
        grid=grid,
        position_embedding="size" if registers else "released",  # as DINOv2 with registers was trained
        **_shown_in_shapes(trunk, embedding),
    )
    return _with_mlp_width(config, trunk)


def usual_num_heads(width: int, *, gated: bool) -> int:
    """Return the number of heads of published ViTs of a width, which no tensor shows.

    A head has 64 channels, but there are at most 16 heads (ViT-H, arXiv 2010.11929; ViT-g and ViT-G, arXiv 2106.04560),
    except with a gated MLP (ViT-g of DINOv2).
    """
    heads = max(1, width // 64)
    return heads if gated else min(16, heads)


def _dinov3_config(trunk: Mapping[str, Tensor], embedding: Tensor) -> ViTConfig:
    """Return the configuration of a ViT with rotary positions; its periods tell the width of a head, if they are there.

    Without them a head has 64 channels, but 128 in the ViT-7B. The models were trained at 256 pixels.
    """
    width, periods = embedding.shape[0], trunk.get("rope.periods")
    head = 4 * len(periods) if periods is not None else 128 if width == 4096 else 64
    common = _shown_in_shapes(trunk, embedding)
    config = ViTConfig(num_heads=max(1, width // head), grid=max(1, 256 // embedding.shape[-1]), rope=True, **common)
    return _with_mlp_width(config, trunk)


def _with_mlp_width(config: ViTConfig, trunk: Mapping[str, Tensor]) -> ViTConfig:
    """Return the configuration with the inner width of its MLP, if that is not the usual one."""
    second = trunk.get("blocks.0.mlp.fc2.weight")
    unusual = second is not None and second.shape[1] != config.inner_width
    return replace(config, mlp_width=second.shape[1]) if second is not None and unusual else config


def _shown_in_shapes(trunk: Mapping[str, Tensor], embedding: Tensor) -> dict[str, Any]:
    """Return the settings of a ViT that its keys and shapes show by themselves."""
    return {
        "embed_dim": embedding.shape[0],
        "depth": _count(trunk, "blocks"),
        "patch_size": embedding.shape[-1],
        "class_token": "cls_token" in trunk,
        "num_registers": _num_registers(trunk),
        "final_norm": "norm.weight" in trunk,
        "layer_scale": "blocks.0.ls1.gamma" in trunk,
        "mlp": "swiglu" if _is_gated(trunk) else "gelu",
        "in_channels": embedding.shape[1],
    }


def _num_registers(trunk: Mapping[str, Tensor]) -> int:
    return trunk["reg_token"].shape[1] if "reg_token" in trunk and trunk["reg_token"].ndim == 3 else 0


def _is_gated(trunk: Mapping[str, Tensor]) -> bool:
    """Return whether the MLP is gated: its first layer then gives two values for each input of the second."""
    first, second = (trunk.get(f"blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    return first is not None and second is not None and first.shape[0] == 2 * second.shape[1]


def _swin_config(trunk: Mapping[str, Tensor], embedding: Tensor, source: str) -> SwinConfig:
    table = trunk.get("layers.0.blocks.0.attn.relative_position_bias_table")
    if table is None or embedding.shape[-1] != SwinConfig.EMBEDDING:
        raise ValueError(
            f"{source} holds another kind of Swin transformer; one of version 1 is needed, which has tables of "
            f"relative positions and embeds patches of {SwinConfig.EMBEDDING} pixels"
        )
    return SwinConfig(
        embed_dim=embedding.shape[0],
        depths=tuple(_count(trunk, f"layers.{stage}.blocks") for stage in range(_count(trunk, "layers"))),
        first_heads=table.shape[1],
        window=(math.isqrt(table.shape[0]) + 1) // 2,  # a table has (2 window - 1)^2 rows
        final_norm="norm.weight" in trunk,
        in_channels=embedding.shape[1],
    )


def _resnet_config(trunk: Mapping[str, Tensor], source: str) -> ResNetConfig:
    if "layer1.0.conv3.weight" not in trunk:
        raise ValueError(
            f"{source} holds a ResNet of basic blocks, such as ResNet-18 or -34; one of bottlenecks is needed, "
            "such as ResNet-50"
        )
    missing = [key for key in ("conv1.weight", "layer1.0.conv2.weight") if key not in trunk]
    if missing:
        raise ValueError(f"{source} holds a ResNet without {missing[0]}; give other weights, or download them again")
    width = trunk["layer1.0.conv1.weight"].shape[0]
    if trunk["layer1.0.conv2.weight"].shape[1] != width or trunk["layer1.0.conv3.weight"].shape[0] != 4 * width:
        raise ValueError(f"{source} holds a wide ResNet or a ResNeXt; a plain one is needed, such as ResNet-50")
    stages = takewhile(lambda stage: f"layer{stage}.0.conv1.weight" in trunk, count(1))
    return ResNetConfig(
        depths=tuple(_count(trunk, f"layer{stage}") for stage in stages),
        width=width,
        in_channels=trunk["conv1.weight"].shape[1],
    )


def _convnext_config(trunk: Mapping[str, Tensor]) -> ConvNeXtConfig:
    return ConvNeXtConfig(
        embed_dim=trunk["stem.0.weight"].shape[0],
        depths=tuple(_count(trunk, f"stages.{stage}.blocks") for stage in range(_count(trunk, "stages"))),
        layer_scale="stages.0.blocks.0.gamma" in trunk,
        response_norm="stages.0.blocks.0.mlp.grn.weight" in trunk,
        final_norm="norm.weight" in trunk,
        in_channels=trunk["stem.0.weight"].shape[1],
    )


def _count(trunk: Mapping[str, Tensor], prefix: str) -> int:
    """Return one more than the highest number N in keys `<prefix>.N.*`."""
    pattern = re.compile(rf"{re.escape(prefix)}\.(\d{{1,9}})\.")
    return 1 + max((int(match[1]) for match in map(pattern.match, trunk) if match), default=-1)


def first_few(keys: tuple[str, ...], number: int = 4) -> str:
    """Return the first few keys for a message, with `...` if there are more."""
    return ", ".join(keys[:number]) + (", ..." if len(keys) > number else "")
