"""The state dict of one network inside the content of a checkpoint, its tensors checked for size and type."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from selfpatch.checkpoints.config import Side
from selfpatch.checkpoints.key_mapping import is_trunk_key
from selfpatch.core.dry_run import in_dry_run

SIDES: dict[Side, tuple[str, ...]] = {
    "teacher": (
        *("teacher", "teacher_state_dict", "teacher_backbone", "teacher_model", "momentum_encoder", "target_encoder"),
        *("ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model"),
    ),
    "student": ("student", "student_state_dict", "student_backbone", "student_model", "online_encoder"),
}
"""Entries of a checkpoint that hold the network of one side."""
_WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "module", "network", "net", "weights", "params"),
    *("classy_state_dict", "base_model", "trunk", "backbone", "encoder"),
)
"""Entries that may hold the state dict, apart from the sides' own names; three of the last are VISSL's."""
MAX_DEPTH = 8
"""Largest number of entries inside one another."""
MAX_TENSORS = 20_000
"""Largest number of tensors of a state dict; a ViT of 40 blocks has some 700 of them."""
MAX_REPEATS = 4
"""Largest size of all tensors together, in multiples of the file: prototypes may be saved once and named twice."""


def find_state_dict(content: Any, side: Side, source: str) -> dict[str, Tensor]:
    """Return the tensors of one network, or of both sides, from inside the entries that wrap them.

    Raises:
        ValueError: there is no state dict, or there are several without a known name; it has keys that are no text, too
            many tensors, or tensors of an unusual kind.
    """
    found = _unwrap(content, side, source)
    odd = [key for key, value in found.items() if isinstance(value, Tensor) and not isinstance(key, str)]
    if odd:
        kind = type(odd[0]).__name__
        raise ValueError(f"{source} has a tensor under a {kind}, which is no text; save tensors by their names")
    tensors = {key: value for key, value in found.items() if isinstance(value, Tensor)}
    if len(tensors) > MAX_TENSORS:
        raise ValueError(f"{source} holds {len(tensors):,} tensors; save the state dict of one network alone")
    for key, tensor in tensors.items():
        _require_plain(key, tensor, source)
    return tensors


def check_size(tensors: Mapping[str, Tensor], size: int, source: str) -> None:
    """Raise ValueError if tensors claim more memory than a file of `size` bytes can fill; a dry run reads no values."""
    if in_dry_run():
        return
    claimed = 0
    for key, tensor in tensors.items():
        stored = tensor.numel() * tensor.element_size()
        if stored > tensor.untyped_storage().nbytes():
            raise ValueError(f"{source}: {key} has more values than the file holds; save it as a contiguous tensor")
        claimed += stored
    if claimed > MAX_REPEATS * size:
        raise ValueError(f"{source}: its tensors claim {claimed:,} bytes, and the file has {size:,}; download it again")


def _require_plain(key: str, tensor: Tensor, source: str) -> None:
    """Raise ValueError if a tensor is of a kind that no backbone has."""
    kinds = {"sparse": tensor.layout != torch.strided or tensor.is_nested, "quantized": tensor.is_quantized}
    kinds |= {"complex": tensor.is_complex(), "empty of values (meta)": tensor.is_meta and not in_dry_run()}
    for kind, is_so in kinds.items():
        if is_so:
            raise ValueError(f"{source}: {key} is {kind}; save it as a dense tensor of floats")


def _unwrap(content: Any, side: Side, source: str, depth: int = 0) -> Mapping[Any, Any]:
    if isinstance(content, Mapping) and depth < MAX_DEPTH:
        other: Side = "student" if side == "teacher" else "teacher"  # some files hold one network, under either name
        for key in (*SIDES[side], *_WRAPPERS, *SIDES[other]):
            if isinstance(content.get(key), Mapping) and content[key]:
                return _unwrap(content[key], side, source, depth + 1)
        if any(isinstance(value, Tensor) for value in content.values()):
            return content
        networks = dict(_networks(content))
        if len(networks) > 1:
            names = " and ".join(map(repr, list(networks)[:4]))
            raise ValueError(f"{source} holds {len(networks)} networks, {names}; save the state dict of one by itself")
        if networks:
            return next(iter(networks.values()))
    raise ValueError(
        f"{source} holds no state dict; tensors by name are needed, by themselves or under {side!r}, "
        "'state_dict' or 'model'"
    )


def _networks(content: Mapping[Any, Any]) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield the entries that hold the tensors of a backbone."""
    for name, value in content.items():
        if isinstance(value, Mapping) and any(isinstance(key, str) and is_trunk_key(key) for key in value):
            yield str(name)[:40], value
