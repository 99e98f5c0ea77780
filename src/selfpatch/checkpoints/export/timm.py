"""Folders that timm opens: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

config.json names one of timm's architectures, with the arguments that make it this network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from selfpatch.checkpoints.export.formats import POOL_IS_LEFT_OUT, Features, Written, stored_size
from selfpatch.checkpoints.state import write_safetensors
from selfpatch.core.atomic_io import write_atomically
from selfpatch.models.backbones.config import AnyBackboneConfig, SwinConfig, ViTConfig
from selfpatch.models.encoder import BranchEncoder

USAGE = """model = timm.create_model("local-dir:{folder}", pretrained=True)
features = model.forward_features(images)"""


def write(encoder: BranchEncoder, folder: Path, size: int | None) -> Written:
    """Raises ValueError for a Swin without final norm: timm's always has one."""
    shape, trunk = encoder.backbone.config, encoder.backbone.trunk
    if isinstance(shape, SwinConfig) and not shape.final_norm:
        raise ValueError("this Swin has no final norm, and timm's always has one; use --to onnx or safetensors")
    state = trunk.state_dict()
    name, arguments = architecture(shape, state)
    write_safetensors(folder / "model.safetensors", to_timm_file(state, shape), {"format": "pt"})
    write_atomically(folder / "config.json", json.dumps(_config(shape, name, arguments), indent=2))
    notes = [] if encoder.pool is None else [POOL_IS_LEFT_OUT]
    if isinstance(shape, ViTConfig) and shape.timm_model is None and shape.position_embedding == "released":
        notes.append(
            f"At sizes other than {stored_size(shape)} x {stored_size(shape)} timm interpolates positions its own way, "
            "and features differ a little from those of the training code."
        )
    if not isinstance(shape, SwinConfig):
        notes.append("Beside timm, transformers opens this folder too: AutoModel.from_pretrained(FOLDER).")
    side = stored_size(shape)
    own_pooling = encoder.pool is None and shape.timm_model is None
    return Written(USAGE, sizes=((side, side),), notes=tuple(notes), has_image=own_pooling)


def architecture(shape: AnyBackboneConfig, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the timm model that has a shape."""
    common: dict[str, Any] = {"in_chans": shape.in_channels}
    if isinstance(shape, ViTConfig):
        common |= {"img_size": stored_size(shape), "dynamic_img_size": True}
        if shape.timm_model is None:
            return _named_vit(shape), common | _vit_arguments(shape, state)
        if not shape.final_norm and "fc_norm.weight" not in state:
            common["final_norm"] = False
        return shape.timm_model.partition(".")[0], common
    if isinstance(shape, SwinConfig):
        common["strict_img_size"] = False
        if shape.timm_model is None:
            return "swin_tiny_patch4_window7_224", common | _swin_arguments(shape)
        return shape.timm_model.partition(".")[0], common
    if shape.timm_model is None:
        widths = [shape.width << stage for stage in range(len(shape.depths))]
        return "resnet50", common | {"layers": list(shape.depths), "channels": widths}
    return shape.timm_model.partition(".")[0], common


def _named_vit(shape: ViTConfig) -> str:
    """All that differs from it is among the arguments, but for the kind of MLP, which JSON cannot say."""
    if shape.mlp == "swiglu":
        return "vit_giant_patch14_dinov2"
    sizes = {192: "tiny", 384: "small", 768: "base", 1024: "large"}
    return f"vit_{sizes.get(shape.embed_dim, 'small')}_patch16_224"


def _vit_arguments(shape: ViTConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "patch_size": shape.patch_size,
        "embed_dim": shape.embed_dim,
        "depth": shape.depth,
        "num_heads": shape.num_heads,
        "mlp_ratio": state["blocks.0.mlp.fc1.weight"].shape[0] / shape.embed_dim,
        "class_token": shape.class_token,
        "reg_tokens": shape.num_registers,
        "no_embed_class": shape.num_registers > 0,
        "global_pool": "token" if shape.class_token else "avg",
        "fc_norm": False,
        "final_norm": shape.final_norm,
        "init_values": 1e-5 if shape.layer_scale else 0.0,
    }


def _swin_arguments(shape: SwinConfig) -> dict[str, Any]:
    return {
        "img_size": stored_size(shape),
        "patch_size": shape.EMBEDDING,
        "embed_dim": shape.embed_dim,
        "depths": list(shape.depths),
        "num_heads": [shape.first_heads << stage for stage in range(len(shape.depths))],
        "window_size": shape.window,
    }


def to_timm_file(state: Mapping[str, Tensor], shape: AnyBackboneConfig) -> dict[str, Tensor]:
    """The tensors by the names that timm expects in a file. For a Swin these are the first authors', where a stage's
    merging is its end: timm takes any file without classifier for theirs and renames it.
    """
    if not isinstance(shape, SwinConfig):
        return dict(state)

    def before(merging: re.Match[str]) -> str:
        return f"layers.{int(merging[1]) - 1}.downsample."

    return {re.sub(r"^layers\.(\d+)\.downsample\.", before, name): tensor for name, tensor in state.items()}


def _config(shape: AnyBackboneConfig, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    side = stored_size(shape)
    known = timm.get_pretrained_cfg(name)
    assert known is not None, name
    pretrained = {
        "input_size": [shape.in_channels, side, side],
        "fixed_input_size": False,
        "mean": list(shape.mean),
        "std": list(shape.std),
        "interpolation": "bicubic",
        "num_classes": 0,
        "first_conv": known.first_conv,
        "classifier": known.classifier,
    }
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": shape.dim,
        "model_args": arguments,
        "pretrained_cfg": pretrained,
    }


@torch.no_grad()
def read_features(folder: Path, images: Tensor) -> Features:
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    features = model.forward_features(images)
    pooled = model.forward_head(features, pre_logits=True)
    if features.ndim == 3:  # [B, prefix + N, D] of a ViT
        h, w = model.patch_embed.dynamic_feat_size(images.shape[-2:])
        patches = features[:, model.num_prefix_tokens :].unflatten(1, (h, w)).movedim(-1, 1)
    else:
        patches = features.movedim(-1, 1) if getattr(model, "output_fmt", "NCHW") == "NHWC" else features
    return Features(pooled, patches)
