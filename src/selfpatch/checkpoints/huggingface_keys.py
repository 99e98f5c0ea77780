"""Keys of transformers' models, as every version reads them from the Hub, for keys of timm: one table, used both ways.

`#` stands for a number, and `#+1` for the number that is one larger than on the other side.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_NUMBER = re.compile(r"#(?:\+1)?")
_QKV = ("query", "key", "value")

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
_FIRST_LAYERS = ("embeddings.patch_embeddings.projection.weight", "embedder.embedder.convolution.weight")
"""Ends of keys that only these models have."""


def to_huggingface(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors under transformers' keys, with each qkv [3 * D, ...] split.

    Raises:
        ValueError: a key is not in the table.
    """
    split: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if ".attn.qkv." in key:
            split |= {key.replace(".qkv.", f".{part}."): x for part, x in zip(_QKV, tensor.chunk(3), strict=True)}
        else:
            split[key] = tensor
    result = {}
    for key, tensor in split.items():
        renamed = _renamed(key, names.items(), "^")
        if renamed is None:
            raise ValueError(f"transformers has no key for {key!r} of this network; use --to timm or onnx")
        result[renamed] = tensor
    return result


def from_huggingface(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the keys of DINO, DINOv2 and timm, with queries, keys and values joined.

    State dicts of other models stay as they are, and so do keys that are not in the tables.
    """
    if not any(key.endswith(_FIRST_LAYERS) for key in raw):
        return dict(raw)
    tables = (VIT, DINOV2, DINOV2_SWIGLU, SWIN, RESNET)
    names = [(theirs, ours) for table in tables for ours, theirs in table.items()]
    state = {_renamed(key, names, r"\b") or key: tensor for key, tensor in raw.items()}
    for query in [key for key in state if ".attn.query." in key]:
        parts = [state.pop(query.replace("query", part), None) for part in _QKV]
        state[query.replace("query", "qkv")] = torch.cat([part for part in parts if part is not None])
    return state


def _renamed(key: str, names: Iterable[tuple[str, str]], start: str) -> str | None:
    """Return a key with the first name that it holds replaced, or None; `start` is the pattern before a name."""
    for old, new in names:
        pattern = r"(\d+)".join(map(re.escape, _NUMBER.split(old))) + ("" if old.endswith(".") else "$")
        match = re.search(start + pattern, key)
        if match is not None:
            marks = zip(match.groups(), _NUMBER.findall(old), _NUMBER.findall(new), strict=True)
            numbers = [str(int(number) - (mark == "#+1") + (to == "#+1")) for number, mark, to in marks]
            filled = "".join(text + n for text, n in zip(_NUMBER.split(new), [*numbers, ""], strict=True))
            return key[: match.start()] + filled + key[match.end() :]
    return None
