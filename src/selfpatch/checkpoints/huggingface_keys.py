"""Keys of Hugging Face's `ViTModel` and `Dinov2Model`, as `save_pretrained` writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

PATCH_EMBEDDING = "embeddings.patch_embeddings.projection.weight"
"""End of a key that only these models have."""

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


def to_released_keys(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors under the keys of DINO and DINOv2, with queries, keys and values joined.

    State dicts of other models stay as they are.
    """
    if not any(key.endswith(PATCH_EMBEDDING) for key in raw):
        return dict(raw)
    state = {}
    for key, tensor in raw.items():
        if re.search(r"\.attention\.attention\.(key|value)\.", key):
            continue
        if _QUERY.search(key):
            parts = [raw.get(_QUERY.sub(f".attention.attention.{part}.", key)) for part in ("query", "key", "value")]
            tensor = torch.cat([part for part in parts if part is not None])
            key = _QUERY.sub(".attn.qkv.", key)
        for pattern, replacement in _RENAMES:
            key = re.sub(pattern, replacement, key)
        state[key] = tensor
    return state
