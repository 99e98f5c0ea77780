"""Export for timm: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

config.json names one of timm's architectures, with the arguments that rebuild this network.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from selfpatch.checkpoints.export.formats import ExportSummary, OnHub, native_size
from selfpatch.checkpoints.export.safetensors import metadata_of, write_safetensors
from selfpatch.checkpoints.key_mapping import move_patch_merging
from selfpatch.config.schema import Size
from selfpatch.core.atomic_io import write_atomically
from selfpatch.models.backbones import convnext_keys, dinov3_keys
from selfpatch.models.backbones.build import has_timms_keys
from selfpatch.models.backbones.config import AnyBackboneConfig, ConvNeXtConfig, SwinConfig, ViTConfig
from selfpatch.models.encoder import BranchEncoder, Features

LIBRARIES = ()
USAGE = """model = timm.create_model("local-dir:{folder}", pretrained=True)
features = model.forward_features(images)"""
ON_HUB = OnHub(
    "timm",
    """import timm

model = timm.create_model("hf-hub:{repository}", pretrained=True).eval()
features = model.forward_features(images)""",
)

_VIT_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large"}
"""Names of timm's ViTs by width; any of them becomes any other by its arguments."""


def write(encoder: BranchEncoder, folder: Path, size: Size | None) -> ExportSummary:
    """Write weights and config.json; `size` is not used.

    Raises:
        ValueError: the network is a Swin or ConvNeXt without final norm, which timm's always has.
    """
    config, state = encoder.backbone.config, encoder.backbone.trunk.state_dict()
    if isinstance(config, SwinConfig | ConvNeXtConfig) and not config.final_norm:
        name = type(config).__name__.removesuffix("Config")
        raise ValueError(f"this {name} has no final norm, and timm's always has one; use --to onnx or safetensors")
    write_atomically(folder / "config.json", json.dumps(_description(config, state), indent=2))
    side, notes = native_size(config), []
    ours = isinstance(config, ViTConfig) and config.timm_model is None and not config.rope
    if isinstance(config, ViTConfig) and ours and config.position_embedding == "released":
        notes.append(
            f"At sizes other than {side} x {side} timm interpolates positions its own way, "
            "and features differ a little from those of the training code."
        )
    if isinstance(config, SwinConfig):
        # timm takes any file of a Swin without classifier for one of the original authors, and renames its keys.
        state = {move_patch_merging(key, -1): tensor for key, tensor in state.items()}
    elif isinstance(config, ViTConfig) and config.rope:
        dinov3_keys.check_periods(state, config.rope_base, "timm")
        state = dinov3_keys.to_timm(state)
    elif isinstance(config, ConvNeXtConfig):
        state = convnext_keys.to_timm(state)
        notes.append("forward_features gives the last map before its norm; model.head.norm gives patch features.")
    else:
        notes.append("transformers opens this folder too: AutoModel.from_pretrained(FOLDER).")
    if config.timm_model is not None and "fc_norm.weight" in _timm_keys(*architecture(config, state)):
        notes.append("forward_features gives patches before their norm; model.fc_norm gives patch features.")
        state = {re.sub(r"^norm\.", "fc_norm.", key): tensor for key, tensor in state.items()}
    write_safetensors(folder / "model.safetensors", state, metadata_of(config))
    same_pooling = encoder.pool is None and config.timm_model is None
    return ExportSummary(USAGE, ((side, side),), tuple(notes), has_image=same_pooling)


def _timm_keys(name: str, arguments: Mapping[str, Any]) -> set[str]:
    """Return the names of the tensors of a timm model."""
    with torch.device("meta"):
        return {*timm.create_model(name, num_classes=0, **arguments).state_dict()}


def architecture(config: AnyBackboneConfig, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of the timm model with a configuration, reading widths from the trunk's tensors."""
    arguments: dict[str, Any] = {"in_chans": config.in_channels}
    if isinstance(config, ViTConfig):
        arguments |= {"img_size": native_size(config), "dynamic_img_size": True}
    elif isinstance(config, SwinConfig):
        arguments["strict_img_size"] = False
    if config.timm_model is not None:
        name, is_eva = config.timm_model.partition(".")[0], has_timms_keys(config)
        if "attn_pool.latent" in _timm_keys(name, arguments):
            arguments["global_pool"] = "token" if isinstance(config, ViTConfig) and config.class_token else ""
        if isinstance(config, ViTConfig) and not config.final_norm:
            arguments["use_post_transformer_norm" if is_eva else "final_norm"] = False
            arguments["use_fc_norm" if is_eva else "fc_norm"] = False
        return name, arguments
    if isinstance(config, ViTConfig):
        name, of_vit = _vit(config, state)
        return name, arguments | of_vit
    if isinstance(config, SwinConfig):
        return "swin_tiny_patch4_window7_224", arguments | {
            "img_size": native_size(config),
            "patch_size": config.EMBEDDING,
            "embed_dim": config.embed_dim,
            "depths": list(config.depths),
            "num_heads": list(config.stage_heads),
            "window_size": config.window,
        }
    if isinstance(config, ConvNeXtConfig):
        if len(config.depths) != 4:
            raise ValueError(f"timm's ConvNeXt has 4 stages, and this one {len(config.depths)}; use --to onnx")
        return "convnext_tiny", arguments | {
            "depths": list(config.depths),
            "dims": list(config.map_dims),
            "ls_init_value": 1e-6 if config.layer_scale else None,
            "use_grn": config.response_norm,
            "norm_eps": config.norm_eps,
        }
    return "resnet50", arguments | {"layers": list(config.depths), "channels": list(config.stage_widths)}


def _vit(config: ViTConfig, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Return name and arguments of the timm model that is one of our ViTs, without those of its images."""
    common = {
        "patch_size": config.patch_size,
        "embed_dim": config.embed_dim,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "class_token": config.class_token,
        "global_pool": "token" if config.class_token else "avg",
    }
    if config.rope:
        return "vit_small_patch16_dinov3_qkvb", common | {
            "mlp_ratio": _mlp_ratio(config.inner_width, config.embed_dim),
            "swiglu_mlp": config.mlp == "swiglu",
            "swiglu_align_to": 1 if config.mlp == "swiglu" else 0,  # the gate then has a layer of its own
            "num_reg_tokens": config.num_registers,
            "use_post_transformer_norm": config.final_norm,
            "rope_temperature": config.rope_base,
            "init_values": 1e-5 if config.layer_scale else None,
        }
    # JSON cannot name the class of a gated MLP, which this model has.
    gated, size = config.mlp == "swiglu", _VIT_SIZES.get(config.embed_dim, "small")
    return "vit_giant_patch14_dinov2" if gated else f"vit_{size}_patch16_224", common | {
        "mlp_ratio": _mlp_ratio(state["blocks.0.mlp.fc1.weight"].shape[0], config.embed_dim),
        "reg_tokens": config.num_registers,
        "no_embed_class": config.num_registers > 0,
        "fc_norm": False,
        "final_norm": config.final_norm,
        "init_values": 1e-5 if config.layer_scale else 0.0,
    }


def _mlp_ratio(width: int, dim: int) -> float:
    """Return the ratio from which timm, which rounds their product down, computes the inner width of an MLP."""
    exact = int(dim * (width / dim)) == width
    return (width if exact else width + 0.5) / dim


def _description(config: AnyBackboneConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the content of config.json."""
    name, arguments = architecture(config, state)
    side, known = native_size(config), timm.get_pretrained_cfg(name)
    assert known is not None, name
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": config.dim,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [config.in_channels, side, side],
            "fixed_input_size": False,
            "mean": list(config.mean),
            "std": list(config.std),
            "interpolation": "bicubic",
            "num_classes": 0,
            "first_conv": known.first_conv,
            "classifier": known.classifier,
        },
    }


@torch.no_grad()
def read_features(folder: Path, images: Tensor) -> Features:
    """Return the features of images [B, C, H, W] in timm."""
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    features = model.forward_features(images)
    pooled = model.forward_head(features, pre_logits=True)
    if features.ndim == 3:  # [B, prefix + N, D] of a ViT
        h, w = model.patch_embed.dynamic_feat_size(images.shape[-2:])
        patches = model.fc_norm(features[:, model.num_prefix_tokens :]).unflatten(1, (h, w)).movedim(-1, 1)
    elif "convnext" in model.pretrained_cfg["architecture"]:
        patches = model.head.norm(features)
    else:
        patches = features.movedim(-1, 1) if getattr(model, "output_fmt", "NCHW") == "NHWC" else features
    return Features(pooled, patches)
