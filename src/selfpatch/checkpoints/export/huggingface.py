"""Export for Hugging Face's transformers: `AutoModel.from_pretrained("FOLDER")`.

A trunk below a pool has no final norm, and becomes the one model of its family in transformers that has none before
its last hidden state: VitDet without windows, Donut's Swin, ConvNeXt.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfpatch.checkpoints import huggingface_keys as keys
from selfpatch.checkpoints.export.formats import ExportSummary, OnHub, native_size
from selfpatch.checkpoints.export.safetensors import metadata_of, write_safetensors
from selfpatch.config.schema import Size
from selfpatch.core.atomic_io import write_atomically
from selfpatch.models.backbones.config import AnyBackboneConfig, ConvNeXtConfig, ResNetConfig, SwinConfig, ViTConfig
from selfpatch.models.backbones.dinov3_keys import check_periods
from selfpatch.models.encoder import BranchEncoder, Features

LIBRARIES = ("transformers",)
USAGE = """model = transformers.AutoModel.from_pretrained("{folder}")
tokens = model(images).last_hidden_state"""
ON_HUB = OnHub(
    "transformers",
    """from transformers import AutoModel

model = AutoModel.from_pretrained("{repository}")
tokens = model(images).last_hidden_state""",
)

MODELS = {
    "ViTModel": ("vit", keys.VIT),
    "IJepaModel": ("ijepa", keys.VIT),
    "Dinov2Model": ("dinov2", keys.DINOV2),
    "Dinov2WithRegistersModel": ("dinov2_with_registers", keys.DINOV2),
    "DINOv3ViTModel": ("dinov3_vit", keys.DINOV3),
    "VitDetModel": ("vitdet", keys.VITDET),
    "SwinModel": ("swin", keys.SWIN),
    "DonutSwinModel": ("donut-swin", keys.SWIN),
    "ResNetModel": ("resnet", keys.RESNET),
    "DINOv3ConvNextModel": ("dinov3_convnext", keys.DINOV3_CONVNEXT),
    "ConvNextModel": ("convnext", keys.CONVNEXT),
    "ConvNextV2Model": ("convnextv2", keys.CONVNEXT),
}
"""Type and names of the keys of each model."""

MAPS = ("VitDetModel", "ResNetModel", "ConvNextModel", "ConvNextV2Model")
"""Models that give patches as a map; the others as a row of tokens."""


def write(encoder: BranchEncoder, folder: Path, size: Size | None) -> ExportSummary:
    """Write weights, config.json and preprocessor_config.json; `size` is not used.

    Raises:
        ValueError: transformers has no model of exactly this architecture.
    """
    config, state = encoder.backbone.config, encoder.backbone.trunk.state_dict()
    name, settings = find_model(config, state)
    model_type, names = MODELS[name]
    if isinstance(config, ViTConfig):
        _adapt_vit(state, config, name)
        if config.mlp == "swiglu":
            names = keys.DINOV3_SWIGLU if config.rope else keys.DINOV2_SWIGLU
    elif isinstance(config, ConvNeXtConfig):
        _adapt_convnext(state, config)
    elif name == "DonutSwinModel":  # whose files hold the tables that timm computes
        tables = dict(encoder.backbone.trunk.named_buffers())
        state |= {key: table for key, table in tables.items() if key.endswith(".relative_position_index")}
    tensors = keys.to_huggingface(state, names)
    if name == "DINOv3ViTModel":  # its keys have no bias
        tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith(".k_proj.bias")}
    described: AnyBackboneConfig = config
    if isinstance(config, ViTConfig):
        described = replace(config, layer_scale="blocks.0.ls1.gamma" in state)
    write_safetensors(folder / "model.safetensors", tensors, metadata_of(described))
    settings = {"architectures": [name], "model_type": model_type, "num_channels": config.in_channels, **settings}
    write_atomically(folder / "config.json", json.dumps(settings, indent=2))
    if config.in_channels == 3:
        write_atomically(folder / "preprocessor_config.json", json.dumps(_preprocessing(config), indent=2))
    side, notes = native_size(config), []
    if isinstance(config, ViTConfig | SwinConfig) and name != "DINOv3ViTModel":
        action = "cuts windows" if isinstance(config, SwinConfig) else "interpolates positions"
        notes.append(
            f"At other sizes transformers {action} its own way, and features differ from those of the training code."
        )
    if name == "ViTModel":
        notes.append("The `pooler` that ViTModel adds is untrained; add_pooling_layer=False leaves it out.")
    if name in ("ConvNextModel", "ConvNextV2Model"):
        notes.append("The `pooler_output` of transformers has an untrained norm; patch features have none.")
    if name in MAPS:
        notes.append(f"`last_hidden_state` is a map of patches, [B, {config.dim}, h, w].")
    has_image = encoder.pool is None and name not in ("ConvNextModel", "ConvNextV2Model")
    return ExportSummary(USAGE, ((side, side),), tuple(notes), has_image=has_image)


def find_model(config: AnyBackboneConfig, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Return the model of transformers with a configuration and its settings.

    Widths that the configuration does not hold are read from the trunk's tensors.

    Raises:
        ValueError: there is none.
    """
    if isinstance(config, ViTConfig):
        return _vit(config, state)
    if isinstance(config, ResNetConfig):
        return "ResNetModel", {
            "embedding_size": state["conv1.weight"].shape[0],
            "hidden_sizes": list(config.map_dims),
            "depths": list(config.depths),
            "layer_type": "bottleneck",
            "hidden_act": "relu",
        }
    if isinstance(config, ConvNeXtConfig):
        name = _convnext(config)
        stages = {} if name == "DINOv3ConvNextModel" else {"num_stages": len(config.depths)}
        return name, stages | {
            "hidden_sizes": list(config.map_dims),
            "depths": list(config.depths),
            "layer_norm_eps": config.norm_eps,
            "hidden_act": "gelu",
        }
    return "SwinModel" if config.final_norm else "DonutSwinModel", {
        "image_size": native_size(config),
        "patch_size": config.EMBEDDING,
        "embed_dim": config.embed_dim,
        "depths": list(config.depths),
        "num_heads": list(config.stage_heads),
        "window_size": config.window,
        "mlp_ratio": state["layers.0.blocks.0.mlp.fc1.weight"].shape[0] / config.embed_dim,
        "layer_norm_eps": 1e-5,
        "drop_path_rate": 0.0,
    }


def _convnext(config: ConvNeXtConfig) -> str:
    """Return the model of transformers that is a ConvNeXt; only DINOv3's puts its final norm on every patch."""
    if config.final_norm and config.layer_scale and not config.response_norm:
        return "DINOv3ConvNextModel"
    # The other two compute with an epsilon of 1e-6 whatever their config.json says.
    if config.final_norm or config.layer_scale == config.response_norm or config.norm_eps != 1e-6:
        raise ValueError(
            "transformers has no ConvNeXt with patch features that has all of this one; use --to timm, onnx or "
            "safetensors"
        )
    return "ConvNextV2Model" if config.response_norm else "ConvNextModel"


def _vit(config: ViTConfig, state: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    if config.timm_model is not None and not {"pos_embed", "blocks.0.attn.qkv.bias"} <= state.keys():
        raise ValueError(f"transformers has no model that is timm's {config.timm_model}; use --to timm or safetensors")
    settings = {
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "image_size": native_size(config),
        "patch_size": config.patch_size,
        "layer_norm_eps": config.eps,
        "qkv_bias": "blocks.0.attn.qkv.bias" in state,
        "hidden_act": "gelu",
    }
    gated, hidden = config.mlp == "swiglu", state["blocks.0.mlp.fc2.weight"].shape[1]
    if not config.final_norm:
        if config.class_token or config.num_registers or config.rope or gated:
            raise ValueError(
                "this ViT has no final norm, and transformers has such a one only without CLS token, registers, rotary "
                "positions and gated MLP; use --to timm, whose folder transformers' AutoModel opens where timm is "
                "installed, or --to onnx"
            )
        settings |= {"pretrain_image_size": native_size(config), "mlp_ratio": _mlp_ratio(config, hidden)}
        return "VitDetModel", settings
    if config.rope:
        return "DINOv3ViTModel", _dinov3(config, settings)
    if not (config.num_registers or gated or "blocks.0.ls1.gamma" in state):
        return "ViTModel" if config.class_token else "IJepaModel", settings | {"intermediate_size": hidden}
    if not config.class_token:
        raise ValueError("transformers has no ViT without CLS token that has all of this one; use --to timm or onnx")
    settings |= {"mlp_ratio": _mlp_ratio(config, hidden), "use_swiglu_ffn": gated}
    if not config.num_registers:
        return "Dinov2Model", settings
    return "Dinov2WithRegistersModel", settings | {"num_register_tokens": config.num_registers}


def _dinov3(config: ViTConfig, settings: dict[str, Any]) -> dict[str, Any]:
    if not config.class_token:
        raise ValueError("transformers has no ViT with rotary positions but no CLS token; use --to timm or onnx")
    gated = config.mlp == "swiglu"
    return settings | {
        "intermediate_size": config.inner_width,
        "num_register_tokens": config.num_registers,
        "use_gated_mlp": gated,
        "hidden_act": "silu" if gated else "gelu",
        "rope_theta": config.rope_base,
        "query_bias": True,
        "key_bias": False,
        "value_bias": True,
    }


def _mlp_ratio(config: ViTConfig, hidden: int) -> int:
    """Return the whole number from which transformers computes the MLP's width; raise ValueError if there is none."""
    for ratio in range(1, 17):
        width = config.embed_dim * ratio
        # A gated MLP has two thirds of the width, rounded up to a multiple of 8.
        if hidden == ((width * 2 // 3 + 7) // 8 * 8 if config.mlp == "swiglu" else width):
            return ratio
    raise ValueError(
        f"transformers cannot describe a {config.mlp} MLP of width {hidden} in a ViT of width {config.embed_dim}"
    )


def _adapt_vit(state: dict[str, Tensor], config: ViTConfig, name: str) -> None:
    """Add the tensors that a model of transformers has and a network may lack, with values that change nothing."""
    if name == "VitDetModel":
        state["pos_embed"] = torch.cat([torch.zeros(1, 1, config.dim), state["pos_embed"]], dim=1)
        _fold_layer_scale(state, config.depth)
    elif config.rope:
        check_periods(state, config.rope_base, "transformers")
        del state["rope.periods"]
    elif config.class_token and state["pos_embed"].shape[1] == config.grid**2:  # the CLS token has no position
        state["pos_embed"] = torch.cat([torch.zeros(1, 1, config.dim), state["pos_embed"]], dim=1)
    if config.num_registers:
        state["register_tokens"] = state.pop("reg_token")
    elif config.rope:
        state["register_tokens"] = torch.zeros(1, 0, config.dim)
    if name.startswith(("Dinov2", "DINOv3")):
        state["mask_token"] = torch.zeros(1, 1, config.dim) if config.rope else torch.zeros(1, config.dim)
        for scale in (f"blocks.{i}.ls{j}.gamma" for i in range(config.depth) for j in (1, 2)):
            state.setdefault(scale, torch.ones(config.dim))


def _fold_layer_scale(state: dict[str, Tensor], depth: int) -> None:
    """Multiply the scale of each residual branch into the layer before it: g * (W x + b) = (g W) x + g b."""
    for i in range(depth):
        for scale, layer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
            gamma = state.pop(f"blocks.{i}.{scale}.gamma", None)
            if gamma is not None:
                state[f"blocks.{i}.{layer}.weight"] = gamma[:, None] * state[f"blocks.{i}.{layer}.weight"]
                state[f"blocks.{i}.{layer}.bias"] = gamma * state[f"blocks.{i}.{layer}.bias"]


def _adapt_convnext(state: dict[str, Tensor], config: ConvNeXtConfig) -> None:
    if not config.final_norm:  # transformers normalises the mean of the patches, and no patch
        state |= {"norm.weight": torch.ones(config.dim), "norm.bias": torch.zeros(config.dim)}
    for key in [key for key in state if ".mlp.grn." in key]:
        state[key] = state[key][None, None, None]


def _preprocessing(config: AnyBackboneConfig) -> dict[str, Any]:
    side = 224 if isinstance(config, ResNetConfig | ConvNeXtConfig) else native_size(config)
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(config.mean),
        "image_std": list(config.std),
    }


@torch.no_grad()
def read_features(folder: Path, images: Tensor) -> Features:
    """Return the features of images [B, C, H, W] in transformers.

    Raises:
        ValueError: transformers finds a tensor too few or too many.
    """
    import transformers  # takes a second

    name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    options = {"add_pooling_layer": False} if name in ("ViTModel", "IJepaModel") else {}
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model, found = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, **options)
    finally:
        if shown:
            logging.enable_progress_bar()
    wrong = [key for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in found[kind]]
    if wrong:
        raise ValueError(f"transformers' {name} has a tensor too few or too many, {wrong[0]!r}; use --to timm or onnx")
    output = model.eval()(images)
    if name in MAPS:
        patches = output.last_hidden_state
        return Features(patches.mean((2, 3)) if name == "VitDetModel" else output.pooler_output.flatten(1), patches)
    tokens = output.last_hidden_state  # [B, prefix + N, D]
    if name == "DINOv3ConvNextModel":
        h, w = (side // (4 << (len(model.config.depths) - 1)) for side in images.shape[-2:])
        return Features(output.pooler_output, tokens[:, 1:].unflatten(1, (h, w)).movedim(-1, 1))
    stride = model.config.patch_size << (len(model.config.depths) - 1 if name in ("SwinModel", "DonutSwinModel") else 0)
    h, w = (side // stride for side in images.shape[-2:])
    patches = tokens[:, -h * w :]
    image = tokens[:, 0] if tokens.shape[1] > h * w else patches.mean(1)
    return Features(image, patches.unflatten(1, (h, w)).movedim(-1, 1))
