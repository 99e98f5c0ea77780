"""Keys of DINOv3's ViTs (arXiv 2508.10104) in the released files and in timm's, for those of our ViT, and back."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from selfpatch.ops.rope import rope_periods

SPELLINGS = [
    (r"\bstorage_tokens$", "reg_token"),
    (r"\brope_embed\.periods$", "rope.periods"),
    (r"\.gamma_([12])$", r".ls\1.gamma"),
    (r"\.mlp\.(?:w1|fc1_g)\.", ".mlp.gate."),
    (r"\.mlp\.(?:w2|fc1_x)\.", ".mlp.up."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
]
"""Parts of keys of released files and of timm's `Eva`, for ours or for the parts that `join_parts` joins."""


def from_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a DINOv3 ViT of timm's `Eva` under the keys of our trunk; there are no periods."""
    renamed = {}
    for key, tensor in state.items():
        for pattern, spelling in SPELLINGS:
            key = re.sub(pattern, spelling, key)
        renamed[key] = tensor
    return join_parts(renamed)


def join_parts(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the two halves of each gated MLP joined, and one bias of queries, keys and values.

    The bias of the keys becomes 0, as DINOv3 masks it. Some of timm's files have no bias in attention: then that of
    queries, keys and values becomes 0.
    """
    joined = dict(state)
    for gate in [key for key in state if ".mlp.gate." in key and key.replace(".gate.", ".up.") in state]:
        halves = [joined.pop(gate), joined.pop(gate.replace(".gate.", ".up."))]
        joined[gate.replace(".gate.", ".fc1.")] = torch.cat(halves)
    for weight in [key for key in state if key.endswith(".attn.qkv.weight")]:
        bias, start = weight.removesuffix("weight") + "bias", weight.removesuffix("qkv.weight")
        trunk = re.sub(r"\bblocks\.\d+\.attn\.qkv\.weight$", "", weight)
        query, value = joined.pop(f"{start}q_bias", None), joined.pop(f"{start}v_bias", None)
        mask = joined.pop(f"{bias}_mask", None)
        if query is not None and value is not None:
            joined[bias] = torch.cat([query, torch.zeros_like(query), value])
        elif mask is not None and bias in joined:
            joined[bias] = joined[bias] * mask
        elif bias not in joined and is_dinov3(state, trunk):
            joined[bias] = state[weight].new_zeros(len(state[weight]))
    return joined


def is_dinov3(state: Mapping[str, Tensor], trunk: str = "") -> bool:
    """Return whether a ViT, under our keys with the prefix `trunk`, has rotary positions.

    Files of timm and transformers have no periods of rotations. A ViT with class and register tokens, layer scale and
    no learned positions is then taken for one of DINOv3.
    """
    parts = ("cls_token", "reg_token", "blocks.0.ls1.gamma")
    periods = f"{trunk}rope.periods" in state
    return f"{trunk}pos_embed" not in state and (periods or all(f"{trunk}{part}" in state for part in parts))


def check_periods(state: Mapping[str, Tensor], base: float, library: str) -> None:
    """Raise ValueError if the periods of our trunk are not the ones that another library computes by itself."""
    periods = state["rope.periods"]
    if not torch.allclose(periods, rope_periods(4 * len(periods), base)):
        raise ValueError(
            f"the periods of this network's rotary positions are rounded, as in DINOv3's released files, and {library} "
            "computes its own, which gives other features; use --to onnx or safetensors"
        )


def to_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of our trunk under the keys of timm's `Eva`, whose periods are its own."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if key.endswith(".attn.qkv.bias"):
            query, _, value = tensor.chunk(3)
            renamed |= {key.replace("qkv.bias", "q_bias"): query, key.replace("qkv.bias", "v_bias"): value}
        elif ".mlp.fc1." in key and _is_gated(state, key):
            gate, up = tensor.chunk(2)
            renamed |= {key.replace(".fc1.", ".fc1_g."): gate, key.replace(".fc1.", ".fc1_x."): up}
        elif key != "rope.periods":
            renamed[re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", key)] = tensor
    return renamed


def _is_gated(state: Mapping[str, Tensor], first_layer: str) -> bool:
    block = first_layer.partition(".mlp.")[0]
    return state[f"{block}.mlp.fc1.weight"].shape[0] == 2 * state[f"{block}.mlp.fc2.weight"].shape[1]
