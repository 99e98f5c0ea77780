"""State dicts of Hugging Face's `ViTModel` and `Dinov2Model` as `save_pretrained` writes them, in released names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

PATCHES = "embeddings.patch_embeddings.projection.weight"
"""A name that only these have; something like `vit.` may come before it."""

_RENAMES = [
    (r"embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"embeddings\.position_embeddings$", "pos_embed"),
    (r"embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
    (r"encoder\.layer\.(\d+)\.", r"blocks.\1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"(^|\.)layernorm\.", r"\1norm."),
]
_QUERY = re.compile(r"\.attention\.attention\.query\.")


def to_released_names(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under DINO's and DINOv2's names, queries, keys and values joined; whatever else there is stays
    as it is.
    """
    if not any(name.endswith(PATCHES) for name in raw):
        return dict(raw)
    state = {}
    for name, tensor in raw.items():
        if re.search(r"\.attention\.attention\.(key|value)\.", name):
            continue
        if _QUERY.search(name):
            parts = [raw.get(_QUERY.sub(f".attention.attention.{part}.", name)) for part in ("query", "key", "value")]
            tensor = torch.cat([part for part in parts if part is not None])
            name = _QUERY.sub(".attn.qkv.", name)
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor
    return state
