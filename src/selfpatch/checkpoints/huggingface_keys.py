"""Keys of transformers' models, as every version reads them from the Hub, for keys of timm: one table, used both ways.

`#` stands for a number, and `#+1` for the number that is one larger than on the other side.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_NUMBER = re.compile(r"#(?:\+1)?")
_QKV = ("query", "key", "value")

_GATED = ("gate", "up")

_VIT_TOKENS = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "norm.": "layernorm.",
    **{f"blocks.#.attn.{part}.": f"encoder.layer.#.attention.attention.{part}." for part in _QKV},
    "blocks.#.attn.proj.": "encoder.layer.#.attention.output.dense.",
}
VIT = {
    **_VIT_TOKENS,
    "blocks.#.norm1.": "encoder.layer.#.layernorm_before.",
    "blocks.#.norm2.": "encoder.layer.#.layernorm_after.",
    "blocks.#.mlp.fc1.": "encoder.layer.#.intermediate.dense.",
    "blocks.#.mlp.fc2.": "encoder.layer.#.output.dense.",
}
DINOV2 = {
    **_VIT_TOKENS,
    "blocks.#.ls#.gamma": "encoder.layer.#.layer_scale#.lambda1",
    **{f"blocks.#.{part}.": f"encoder.layer.#.{part}." for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")},
}
DINOV2_SWIGLU = DINOV2 | {
    "blocks.#.mlp.fc1.": "encoder.layer.#.mlp.weights_in.",
    "blocks.#.mlp.fc2.": "encoder.layer.#.mlp.weights_out.",
}
VITDET = {
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.": "embeddings.projection.",
    **{f"blocks.#.{part}.": f"encoder.layer.#.{part}." for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")},
    **{f"blocks.#.attn.{part}.": f"encoder.layer.#.attention.{part}." for part in ("qkv", "proj")},
}
_DINOV3 = {
    "cls_token": "embeddings.cls_token",
    "mask_token": "embeddings.mask_token",
    "register_tokens": "embeddings.register_tokens",
    "patch_embed.proj.": "embeddings.patch_embeddings.",
    "norm.": "norm.",
    **{f"blocks.#.attn.{part}.": f"layer.#.attention.{part[0]}_proj." for part in _QKV},
    "blocks.#.attn.proj.": "layer.#.attention.o_proj.",
    "blocks.#.ls#.gamma": "layer.#.layer_scale#.lambda1",
    "blocks.#.norm#.": "layer.#.norm#.",
    "blocks.#.mlp.fc2.": "layer.#.mlp.down_proj.",
}
DINOV3 = _DINOV3 | {"blocks.#.mlp.fc1.": "layer.#.mlp.up_proj."}
DINOV3_SWIGLU = _DINOV3 | {
    "blocks.#.mlp.gate.": "layer.#.mlp.gate_proj.",
    "blocks.#.mlp.up.": "layer.#.mlp.up_proj.",
}
_SWIN_BLOCK = {
    **{f"attn.{part}.": f"attention.self.{part}." for part in _QKV},
    "attn.relative_position_bias_table": "attention.self.relative_position_bias_table",
    "attn.relative_position_index": "attention.self.relative_position_index",
    "attn.proj.": "attention.output.dense.",
    "norm1.": "layernorm_before.",
    "norm2.": "layernorm_after.",
    "mlp.fc1.": "intermediate.dense.",
    "mlp.fc2.": "output.dense.",
}
SWIN = {
    "patch_embed.norm.": "embeddings.norm.",
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "norm.": "layernorm.",
    **{f"layers.#.blocks.#.{ours}": f"encoder.layers.#.blocks.#.{theirs}" for ours, theirs in _SWIN_BLOCK.items()},
    "layers.#+1.downsample.": "encoder.layers.#.downsample.",
}
RESNET = {
    "conv1.": "embedder.embedder.convolution.",
    "bn1.": "embedder.embedder.normalization.",
    "layer#+1.#.conv#+1.": "encoder.stages.#.layers.#.layer.#.convolution.",
    "layer#+1.#.bn#+1.": "encoder.stages.#.layers.#.layer.#.normalization.",
    "layer#+1.#.downsample.0.": "encoder.stages.#.layers.#.shortcut.convolution.",
    "layer#+1.#.downsample.1.": "encoder.stages.#.layers.#.shortcut.normalization.",
}
_CONVNEXT_BLOCK = {
    "conv_dw.": ("dwconv.", "depthwise_conv."),
    "norm.": ("layernorm.", "layer_norm."),
    "mlp.fc#.": ("pwconv#.", "pointwise_conv#."),
    "gamma": ("layer_scale_parameter", "gamma"),
    "mlp.grn.": ("grn.", "grn."),
}
CONVNEXT = {
    "stem.0.": "embeddings.patch_embeddings.",
    "stem.1.": "embeddings.layernorm.",
    "stages.#.downsample.#.": "encoder.stages.#.downsampling_layer.#.",
    **{f"stages.#.blocks.#.{ours}": f"encoder.stages.#.layers.#.{name}" for ours, (name, _) in _CONVNEXT_BLOCK.items()},
    "norm.": "layernorm.",
}
DINOV3_CONVNEXT = {
    "stem.#.": "stages.0.downsample_layers.#.",
    "stages.#.downsample.#.": "stages.#.downsample_layers.#.",
    **{f"stages.#.blocks.#.{ours}": f"stages.#.layers.#.{name}" for ours, (_, name) in _CONVNEXT_BLOCK.items()},
    "norm.": "layer_norm.",
}
_FIRST_LAYERS = ("embeddings.patch_embeddings.projection.weight", "embedder.embedder.convolution.weight")
"""Ends of keys that only these models have."""
_DINOV3_FIRST_LAYER = "embeddings.patch_embeddings.weight"
_VITDET_FIRST_LAYER = re.compile(r"(?:.*\.)?embeddings\.projection\.weight")
_CONVNEXTS = {"embeddings.layernorm.weight": CONVNEXT, "stages.0.downsample_layers.0.weight": DINOV3_CONVNEXT}
"""End of a key that only such a ConvNeXt has: its table."""


def to_huggingface(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors under transformers' keys, with each qkv [3 * D, ...] split, unless the table joins them.

    Raises:
        ValueError: a key is not in the table.
    """
    split: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if ".attn.qkv." in key and "blocks.#.attn.qkv." not in names:
            split |= {key.replace(".qkv.", f".{part}."): x for part, x in zip(_QKV, tensor.chunk(3), strict=True)}
        elif ".mlp.fc1." in key and "blocks.#.mlp.gate." in names:
            split |= {key.replace(".fc1.", f".{part}."): x for part, x in zip(_GATED, tensor.chunk(2), strict=True)}
        else:
            split[key] = tensor
    result = {}
    for key, tensor in split.items():
        renamed = _renamed(key, names.items(), "^")
        if renamed is None:
            raise ValueError(f"transformers has no key for {key!r} of this network; use --to timm or onnx")
        result[renamed] = tensor
    return result


def is_huggingface_key(key: str) -> bool:
    """Return whether a key is of the first layer of a model of transformers."""
    ends = (*_FIRST_LAYERS, _DINOV3_FIRST_LAYER, *_CONVNEXTS)
    return key.endswith(ends) or _VITDET_FIRST_LAYER.fullmatch(key) is not None


def from_huggingface(raw: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return the tensors under the keys of DINO, DINOv2 and timm, with queries, keys and values joined.

    State dicts of other models stay as they are, and so do keys that are not in the tables.

    Raises:
        ValueError: two keys of `source` are the same tensor.
    """
    tables: tuple[dict[str, str], ...] = (VIT, DINOV2, DINOV2_SWIGLU, SWIN, RESNET)
    convnext = next((table for end, table in _CONVNEXTS.items() if any(key.endswith(end) for key in raw)), None)
    dinov3 = convnext is None and any(key.endswith(_DINOV3_FIRST_LAYER) for key in raw)
    vitdet = any(map(_VITDET_FIRST_LAYER.fullmatch, raw))
    # transformers 5 calls the blocks and stages of DINOv3's models model.layer and model.stages in memory.
    if convnext is not None:
        tables = (convnext,)
        raw = {re.sub(r"\bmodel\.stages\.", "stages.", key): tensor for key, tensor in raw.items()}
    elif dinov3:
        tables = (DINOV3_SWIGLU,) if any(".mlp.gate_proj." in key for key in raw) else (DINOV3,)
        raw = {re.sub(r"\bmodel\.layer\.", "layer.", key): tensor for key, tensor in raw.items()}
    elif vitdet:
        tables = (VITDET,)
    elif not any(key.endswith(_FIRST_LAYERS) for key in raw):
        return dict(raw)
    names = [(theirs, ours) for table in tables for ours, theirs in table.items()]
    state: dict[str, Tensor] = {}
    for key, tensor in raw.items():
        renamed = _renamed(key, names, r"\b") or key
        if renamed in state:
            raise ValueError(f"{source} holds {renamed!r} twice, once as {key!r}; save the tensors of one network")
        state[renamed] = tensor
    if vitdet and "pos_embed" in state:
        state["pos_embed"] = state["pos_embed"][:, 1:]  # the first is of a CLS token, which it has not
    for query in [key for key in state if ".attn.query." in key]:
        parts = [state.pop(query.replace("query", part), None) for part in _QKV]
        if dinov3 and query.endswith(".bias") and parts[0] is not None:
            if parts[1] is not None:
                raise ValueError(
                    f"{source} has a bias of keys, which no ViT with rotary positions has here; use another"
                )
            parts[1] = torch.zeros_like(parts[0])
        state[query.replace("query", "qkv")] = torch.cat([part for part in parts if part is not None])
    return state


def _renamed(key: str, names: Iterable[tuple[str, str]], start: str) -> str | None:
    """Return a key with the first name that it holds replaced, or None; `start` is the pattern before a name."""
    for old, new in names:
        pattern = r"(\d{1,9})".join(map(re.escape, _NUMBER.split(old))) + ("" if old.endswith(".") else "$")
        match = re.search(start + pattern, key)
        if match is not None:
            marks = zip(match.groups(), _NUMBER.findall(old), _NUMBER.findall(new), strict=True)
            numbers = [str(int(number) - (mark == "#+1") + (to == "#+1")) for number, mark, to in marks]
            filled = "".join(text + n for text, n in zip(_NUMBER.split(new), [*numbers, ""], strict=True))
            return key[: match.start()] + filled + key[match.end() :]
    return None
