"""Export for Hugging Face's transformers: `AutoModel.from_pretrained("FOLDER")`.

Each model of transformers is a list of renamings from timm's keys and the values of its config.json. The keys are those
of files on the Hub, which every version reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selfpatch.checkpoints.export.formats import POOL_IS_LEFT_OUT, ExportSummary, Features, native_size
from selfpatch.checkpoints.state import write_safetensors
from selfpatch.core.atomic_io import write_atomically
from selfpatch.models.backbones.config import AnyBackboneConfig, ResNetConfig, SwinConfig, ViTConfig
from selfpatch.models.encoder import BranchEncoder

Renamings = Sequence[tuple[str, str | Callable[[re.Match[str]], str]]]
"""Patterns of timm's keys, with queries, keys and values apart, and their replacements."""


class Model(NamedTuple):
    """A model of transformers with its renamings and its config.json."""

    name: str
    model_type: str
    renamings: Renamings
    settings: Mapping[str, Any]


_EMBEDDING = (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection.")
_VIT_TOKENS: Renamings = [
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^reg_token$", "embeddings.register_tokens"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    _EMBEDDING,
    (r"^norm\.", "layernorm."),
    (r"^blocks\.(\d+)\.attn\.(query|key|value)\.", r"encoder.layer.\1.attention.attention.\2."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layer.\1.attention.output.dense."),
]
_VIT: Renamings = [
    *_VIT_TOKENS,
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.layer.\1.layernorm_before."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.layer.\1.layernorm_after."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
]
_DINOV2: Renamings = [
    *_VIT_TOKENS,
    (r"^blocks\.(\d+)\.ls([12])\.gamma$", r"encoder.layer.\1.layer_scale\2.lambda1"),
    (r"^blocks\.(\d+)\.(norm[12]|mlp\.fc[12])\.", r"encoder.layer.\1.\2."),
]
_DINOV2_SWIGLU: Renamings = [
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.mlp.weights_in."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.mlp.weights_out."),
    *_DINOV2,
]
_SWIN_BLOCK = r"^layers\.(\d+)\.blocks\.(\d+)\."
_HF_SWIN_BLOCK = r"encoder.layers.\1.blocks.\2."
_SWIN: Renamings = [
    (r"^patch_embed\.norm\.", "embeddings.norm."),
    _EMBEDDING,
    (r"^norm\.", "layernorm."),
    (_SWIN_BLOCK + r"norm1\.", _HF_SWIN_BLOCK + "layernorm_before."),
    (_SWIN_BLOCK + r"norm2\.", _HF_SWIN_BLOCK + "layernorm_after."),
    (_SWIN_BLOCK + r"attn\.(query|key|value)\.", _HF_SWIN_BLOCK + r"attention.self.\3."),
    (_SWIN_BLOCK + r"attn\.relative_position", _HF_SWIN_BLOCK + "attention.self.relative_position"),
    (_SWIN_BLOCK + r"attn\.proj\.", _HF_SWIN_BLOCK + "attention.output.dense."),
    (_SWIN_BLOCK + r"mlp\.fc1\.", _HF_SWIN_BLOCK + "intermediate.dense."),
    (_SWIN_BLOCK + r"mlp\.fc2\.", _HF_SWIN_BLOCK + "output.dense."),
    (r"^layers\.(\d+)\.downsample\.", lambda m: f"encoder.layers.{int(m[1]) - 1}.downsample."),
]
_RESNET_PARTS = {"conv": "convolution", "bn": "normalization"}
_RESNET: Renamings = [
    (r"^(conv|bn)1\.", lambda m: f"embedder.embedder.{_RESNET_PARTS[m[1]]}."),
    (
        r"^layer(\d)\.(\d+)\.(conv|bn)(\d)\.",
        lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.layer.{int(m[4]) - 1}.{_RESNET_PARTS[m[3]]}.",
    ),
    (
        r"^layer(\d)\.(\d+)\.downsample\.([01])\.",
        lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.shortcut.{[*_RESNET_PARTS.values()][int(m[3])]}.",
    ),
]

USAGE = """model = transformers.AutoModel.from_pretrained("{folder}")
tokens = model(images).last_hidden_state"""


def write(encoder: BranchEncoder, folder: Path, size: int | None) -> ExportSummary:
    """Write weights, config.json and preprocessor_config.json; `size` is not used.

    Raises:
        ValueError: transformers has no model of exactly this architecture.
    """
    config = encoder.backbone.config
    state = split_qkv(encoder.backbone.trunk.state_dict())
    model = find_model(config, state)
    if isinstance(config, ViTConfig) and config.class_token:
        state |= {"pos_embed": with_cls_position(state["pos_embed"], config)}
    tensors = rename_tensors(state, model.renamings)
    if isinstance(config, ViTConfig) and model.name.startswith("Dinov2"):
        tensors |= _dinov2_extras(config, tensors)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    settings = {"architectures": [model.name], "model_type": model.model_type, "num_channels": config.in_channels}
    write_atomically(folder / "config.json", json.dumps(settings | dict(model.settings), indent=2))
    if config.in_channels == 3:
        write_atomically(folder / "preprocessor_config.json", json.dumps(_preprocessing(config), indent=2))
    side = native_size(config)
    return ExportSummary(USAGE, ((side, side),), _notes(encoder, model), has_image=encoder.pool is None)


def _notes(encoder: BranchEncoder, model: Model) -> tuple[str, ...]:
    config = encoder.backbone.config
    notes = [] if encoder.pool is None else [POOL_IS_LEFT_OUT]
    if not isinstance(config, ResNetConfig):
        action = "cuts windows" if isinstance(config, SwinConfig) else "interpolates positions"
        notes.append(
            f"At other sizes transformers {action} its own way, and features differ from those of the training code."
        )
    if model.name == "ViTModel":
        notes.append("The `pooler` that ViTModel adds is untrained; add_pooling_layer=False leaves it out.")
    return tuple(notes)


def find_model(config: AnyBackboneConfig, state: Mapping[str, Tensor]) -> Model:
    """Return the model of transformers with a configuration.

    The trunk's tensors tell widths that the configuration does not hold.

    Raises:
        ValueError: there is none.
    """
    if isinstance(config, ViTConfig):
        return _vit(config, state)
    if isinstance(config, SwinConfig):
        return _swin(config, state)
    settings = {
        "embedding_size": state["conv1.weight"].shape[0],
        "hidden_sizes": list(config.map_dims),
        "depths": list(config.depths),
        "layer_type": "bottleneck",
        "hidden_act": "relu",
    }
    return Model("ResNetModel", "resnet", _RESNET, settings)


def _vit(config: ViTConfig, state: Mapping[str, Tensor]) -> Model:
    if not config.final_norm:
        raise ValueError(
            "this ViT has no final norm (a pool made its image token), and every ViT of transformers has one; "
            "use --to timm, whose folder transformers' AutoModel opens where timm is installed, or --to onnx"
        )
    common = {
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "image_size": native_size(config),
        "patch_size": config.patch_size,
        "layer_norm_eps": 1e-6,
        "qkv_bias": "blocks.0.attn.query.bias" in state,
        "hidden_act": "gelu",
    }
    scaled = "blocks.0.ls1.gamma" in state
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    if config.class_token and (config.num_registers or scaled or config.mlp == "swiglu"):
        return _dinov2(config, state, common)
    if scaled or config.num_registers or config.mlp == "swiglu":
        raise ValueError("transformers has no ViT without CLS token that has all of this one; use --to timm or onnx")
    name, model_type = ("ViTModel", "vit") if config.class_token else ("IJepaModel", "ijepa")
    return Model(name, model_type, _VIT, common | {"intermediate_size": hidden})


def _dinov2(config: ViTConfig, state: Mapping[str, Tensor], common: Mapping[str, Any]) -> Model:
    gated = config.mlp == "swiglu"
    settings = dict(common) | {"mlp_ratio": _mlp_ratio(config, state), "use_swiglu_ffn": gated}
    names = _DINOV2_SWIGLU if gated else _DINOV2
    if not config.num_registers:
        return Model("Dinov2Model", "dinov2", names, settings)
    settings["num_register_tokens"] = config.num_registers
    return Model("Dinov2WithRegistersModel", "dinov2_with_registers", names, settings)


def _dinov2_extras(config: ViTConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of a Dinov2Model that a network may lack: the mask token of pre-training, and scales of 1."""
    scales = [f"encoder.layer.{i}.layer_scale{j}.lambda1" for i in range(config.depth) for j in (1, 2)]
    ones = {name: torch.ones(config.dim) for name in scales if name not in tensors}
    return {"embeddings.mask_token": torch.zeros(1, config.dim)} | ones


def _mlp_ratio(config: ViTConfig, state: Mapping[str, Tensor]) -> int:
    """Return the whole number from which transformers computes the MLP's width.

    Raises:
        ValueError: there is no such number.
    """
    width, hidden = config.embed_dim, state["blocks.0.mlp.fc2.weight"].shape[1]
    for ratio in range(1, 17):
        # A gated MLP has two thirds of the width, rounded up to a multiple of 8.
        if hidden == ((width * ratio * 2 // 3 + 7) // 8 * 8 if config.mlp == "swiglu" else width * ratio):
            return ratio
    raise ValueError(f"transformers cannot describe a {config.mlp} MLP of width {hidden} in a ViT of width {width}")


def _swin(config: SwinConfig, state: Mapping[str, Tensor]) -> Model:
    if not config.final_norm:
        raise ValueError("this Swin has no final norm, and transformers' always has one; use --to onnx or safetensors")
    settings = {
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
    return Model("SwinModel", "swin", _SWIN, settings)


def split_qkv(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split each qkv [3 * D, ...] into query, key and value [D, ...]."""
    split = {}
    for name, tensor in state.items():
        if ".attn.qkv." not in name:
            split[name] = tensor
            continue
        for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
            split[name.replace(".qkv.", f".{part}.")] = third
    return split


def with_cls_position(positions: Tensor, config: ViTConfig) -> Tensor:
    """Return positions [1, 1 + N, D] for [1, N, D], with zeros for a CLS token that has no position of its own."""
    return positions if positions.shape[1] > config.grid**2 else torch.cat([0 * positions[:, :1], positions], dim=1)


def rename_tensors(state: Mapping[str, Tensor], renamings: Renamings) -> dict[str, Tensor]:
    """Return the tensors under transformers' keys.

    Raises:
        ValueError: no renaming matches a key.
    """
    result = {}
    for name, tensor in state.items():
        found = [re.sub(pattern, new, name) for pattern, new in renamings if re.search(pattern, name)]
        if not found:
            raise ValueError(f"transformers has no place for {name!r} of this network; use --to timm or onnx")
        result[found[0]] = tensor
    return result


def _preprocessing(config: AnyBackboneConfig) -> dict[str, Any]:
    side = native_size(config) if not isinstance(config, ResNetConfig) else 224
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


@contextmanager
def _no_progress_bar(logging: Any) -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@torch.no_grad()
def read_features(folder: Path, images: Tensor) -> Features:
    """Return the features of images [B, C, H, W] in transformers.

    Raises:
        ValueError: transformers finds a tensor too few or too many.
    """
    import transformers  # takes a second

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    options = {"add_pooling_layer": False} if name in ("ViTModel", "IJepaModel") else {}
    with _no_progress_bar(transformers.utils.logging):
        model, found = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, **options)
    wrong = [key for keys in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in found[keys]]
    if wrong:
        raise ValueError(f"transformers' {name} has no place or no tensor for {wrong[0]!r}; use --to timm or onnx")
    output = model.eval()(images)
    if name == "ResNetModel":
        return Features(output.pooler_output.flatten(1), output.last_hidden_state)
    tokens = output.last_hidden_state  # [B, prefix + N, D]
    stride = model.config.patch_size << (len(model.config.depths) - 1 if name == "SwinModel" else 0)
    h, w = (side // stride for side in images.shape[-2:])
    patches = tokens[:, -h * w :]
    image = tokens[:, 0] if tokens.shape[1] > h * w else patches.mean(1)
    return Features(image, patches.unflatten(1, (h, w)).movedim(-1, 1))
