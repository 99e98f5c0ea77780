"""Keys of released checkpoints -> keys of our `Branch`. A new format is a row in one of the tables.

find the trunks, by keys that every trunk has; choose the one of the requested side
for each key of a checkpoint:
    it belongs to the network of the other side:      skip it
    cut off the prefix that it shares with the trunk, or with the trunk's siblings (heads, queues)
    it matches RENAMES:                               use that name
    it matches LEFT_OUT:                              nothing here uses it, and the report names it
    it lies in the trunk:                             backbone.trunk.<key>, in timm's terms
    else:                                             leave it as it is; loading then refuses it by name
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from selfpatch.checkpoints.config import Side
from selfpatch.checkpoints.huggingface_keys import to_released_keys

SIDES: dict[Side, str] = {
    "teacher": r"(^|\.)(teacher|momentum_encoder|encoder_k|target_encoder|target_network|ema)\.",
    "student": r"(^|\.)(student|base_encoder|encoder_q|encoder|online_encoder|online_network)\.",
}
"""Prefixes of a trunk's keys where one state dict holds both sides: MoCo-v3, MoCo-v2, ReSim, MoBY, mmselfsup, DINOv2,
Leopart (whose student is under `model.` and counts as the unnamed side)."""

TRUNK = "backbone.trunk."

RENAMES = [
    (r"(?:backbone\.)?(?:masked_embed|mask_token)", "backbone.mask_token"),  # iBOT and SERE; DINOv2; ours
    (r"(?:head|c_head|dino_head)\.(mlp|last_layer)\.(.+)", r"heads.image.\1.\2"),  # DINO and iBOT; SelfPatch; DINOv2
    (r"head\.last_layer2\.(.+)", r"heads.masked_patch.last_layer.\1"),  # iBOT
    (r"p_head\.(.+)", r"heads.patch.\1"),  # SelfPatch, here and below
    (r"ca_head\.cls_token", "pool.query"),
    (r"ca_head\.cls_blocks\.(\d+)\.mlp\.fc1\.(.+)", r"pool.blocks.\1.mlp.0.\2"),
    (r"ca_head\.cls_blocks\.(\d+)\.mlp\.fc2\.(.+)", r"pool.blocks.\1.mlp.2.\2"),
    (r"ca_head\.cls_blocks\.(.+)", r"pool.blocks.\1"),
    (r"ca_head\.(.+)", r"pool.\1"),
    (r"pixel_sere(_local)?\.(.+)", r"heads.spatial_relation\1.\2"),  # SERE
    (r"channel_sere(_local)?\.(.+)", r"heads.channel_relation\1.\2"),
    (r"((?:pool|heads)\..+)", r"\1"),  # ours
]
"""Patterns of whole keys without their prefix; the first that matches counts."""

LEFT_OUT = [
    r"(head|head_dist|ibot_head|dino_head|fc\w*|mlp\w*|pre_logits|classifier|pooler)\..+",  # classifiers, projections
    r"(projector|projector_k|predictor|projection_head|neck|\d+)\..+",  # MoCo-v3, MoBY, SwAV, mmselfsup
    r"(encoder_[qk]|teacher|student)\..+",  # parts of such a network after the trunk
    r"(prototypes\w*\..+|prototypes|queue\w*|centers?)",  # SwAV, Leopart; MoCo, MoBY, DenseCL
    r"fpn_\w+\..+",  # ReSim
    r"\w+_loss\..+",  # centres of DINOv2
    r"(.+\.)?(relative_position_index|attn_mask)",  # tables that Swin computes
]
"""Patterns of whole keys that only training needs, or that can be computed."""

_WITHIN_TRUNK = [
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2 numbers its chunks, then the blocks in them
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"^register_tokens$", "reg_token"),
]
"""Parts of a trunk's keys that timm names differently; all apply."""

_WITHIN_HEADS = [
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),  # torch's newer way of normalising weights
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class MappedState(NamedTuple):
    """One network of a checkpoint, in the keys of our `Branch`."""

    state: dict[str, Tensor]
    left_out: tuple[str, ...]
    """Keys of the checkpoint that nothing here uses."""


def to_branch_keys(raw: Mapping[str, Tensor], side: Side = "teacher") -> dict[str, Tensor]:
    """Return one network of a state dict in the keys of our `Branch`; unknown keys stay as they are."""
    return map_keys(raw, side, "the state dict").state


def map_keys(raw: Mapping[str, Tensor], side: Side, source: str) -> MappedState:
    """Return the network of one side in the keys of our `Branch`, or the only network there is.

    Raises:
        ValueError: there are several networks, and their names do not tell which is which.
    """
    raw = to_released_keys(raw)
    keys, left_out = _new_keys(raw, side, source)
    unused = [*_shared_prototypes(keys, raw), *(k for k in keys if k.startswith("heads.") and k.endswith(_STATISTICS))]
    left_out += [keys.pop(key) for key in unused]
    if f"{TRUNK}layers.0.downsample.reduction.weight" in keys:
        keys = {_as_next_stage(key): old for key, old in keys.items()}
    state = {key: _reshaped(key, raw[old]) for key, old in keys.items()}
    if keys.get(f"{TRUNK}reg_token", "").endswith("register_tokens"):
        _fold_class_position(state)
    _add_batch_counts(state)
    return MappedState(state, tuple(left_out))


def _new_keys(keys: Collection[str], side: Side, source: str) -> tuple[dict[str, str], list[str]]:
    """Return {our key: key of the checkpoint} of one network, and the keys that are left out."""
    trunks = trunk_prefixes(keys)
    trunk = _choose_trunk(trunks, side, source) if trunks else ""
    mapped, left_out = {}, []
    for key in keys:
        prefix = _prefix(key, trunk, trunks)
        if prefix is None:
            continue
        bare = key.removeprefix(prefix)
        renamed = _renamed(bare)
        if renamed is not None:
            mapped[renamed] = key
        elif trunks and any(re.fullmatch(pattern, bare) for pattern in LEFT_OUT):
            left_out.append(key)
        else:
            in_trunk = trunks and prefix == trunk
            mapped[TRUNK + _substitute(bare, _WITHIN_TRUNK) if in_trunk else key] = key
    return mapped, left_out


def _prefix(key: str, trunk: str, trunks: Iterable[str]) -> str | None:
    """Return the prefix to cut off a key: the chosen trunk's, or the part of it that a sibling shares.

    If None, the key belongs to another network: to its trunk or to a sibling of that.
    """
    if max((t for t in trunks if key.startswith(t)), key=len, default=trunk) != trunk:
        return None
    prefixes = [trunk, *_parents(trunk)]
    foreign = [parent for other in trunks for parent in _parents(other) if parent not in prefixes]
    if not key.startswith(trunk) and key.startswith(tuple(foreign)):
        return None
    return next(prefix for prefix in prefixes if key.startswith(prefix))


def trunk_prefixes(keys: Collection[str]) -> list[str]:
    """Return the prefix of each trunk's keys, told by the patch embedding (ViT, Swin) or the first layers (ResNet)."""
    transformers = [k.removesuffix("patch_embed.proj.weight") for k in keys if k.endswith("patch_embed.proj.weight")]
    convolutional = [k.removesuffix("conv1.weight") for k in keys if k.endswith("conv1.weight")]
    found = transformers + [p for p in convolutional if f"{p}layer1.0.conv1.weight" in keys]
    return [prefix for prefix in found if prefix == "" or prefix.endswith(".")]


def _choose_trunk(trunks: Iterable[str], side: Side, source: str) -> str:
    def side_of(trunk: str) -> Side | None:
        return next((name for name, pattern in SIDES.items() if re.search(pattern, trunk)), None)

    other: Side = "student" if side == "teacher" else "teacher"
    by_preference = [[t for t in trunks if side_of(t) == wanted] for wanted in (side, None, other)]
    chosen = next(found for found in by_preference if found)
    if len(chosen) > 1:
        raise ValueError(
            f"{source} holds {len(chosen)} networks, {' and '.join(repr(t) for t in chosen)}; "
            "save the names and tensors of one of them by themselves"
        )
    return chosen[0]


def _parents(prefix: str) -> list[str]:
    """Return the prefixes that the siblings of a trunk may have: `a.b.` -> [`a.`, ``]."""
    parts = prefix.split(".")[:-1]
    return ["".join(f"{part}." for part in parts[:i]) for i in reversed(range(max(1, len(parts))))]


def _renamed(bare: str) -> str | None:
    for pattern, replacement in RENAMES:
        match = re.fullmatch(pattern, bare)
        if match is not None:
            return _substitute(match.expand(replacement), _WITHIN_HEADS)
    return None


def _substitute(key: str, table: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        key = re.sub(pattern, replacement, key)
    return key


def _shared_prototypes(keys: Mapping[str, str], raw: Mapping[str, Tensor]) -> list[str]:
    """Return the keys of iBOT's patch prototypes if they are saved twice, shared with the image tokens."""
    twins = {k: k.replace("heads.masked_patch.", "heads.image.") for k in keys if k.startswith("heads.masked_patch.")}
    shared = all(image in keys and torch.equal(raw[keys[patch]], raw[keys[image]]) for patch, image in twins.items())
    return list(twins) if shared else []


def _as_next_stage(key: str) -> str:
    """Return the key of a patch merging as timm has it: at the begin of the next stage, not at the end of a stage."""
    return re.sub(
        rf"^({re.escape(TRUNK)}layers\.)(\d+)\.downsample\.", lambda m: f"{m[1]}{int(m[2]) + 1}.downsample.", key
    )


def _reshaped(key: str, tensor: Tensor) -> Tensor:
    if key in ("pool.query", "backbone.mask_token") and tensor.ndim == 3:
        return tensor.flatten(0, 1)
    if key.startswith("heads.") and tensor.ndim == 4:  # 1x1 convolutions (SERE)
        return tensor.flatten(1)
    return tensor


def _fold_class_position(state: dict[str, Tensor]) -> None:
    """Add the position of the CLS token, which DINOv2 with registers stores, to the token itself, as timm has it."""
    cls_token, positions = (f"{TRUNK}{name}" for name in ("cls_token", "pos_embed"))
    if cls_token in state and positions in state:
        state[cls_token] = state[cls_token] + state[positions][:, :1]
        state[positions] = state[positions][:, 1:]


def _add_batch_counts(state: dict[str, Tensor]) -> None:
    """Add the batch counts of batch norms, which older checkpoints lack; nothing depends on their values."""
    for key in list(state):
        if key.startswith(TRUNK) and key.endswith(".running_mean"):
            state.setdefault(key.removesuffix("running_mean") + "num_batches_tracked", torch.tensor(0))


def known_num_heads(keys: Iterable[str], width: int) -> int | None:
    """Return the number of attention heads where a format differs from the usual 64 channels a head.

    The exception is MoCo-v3's ViT-S with 12 heads (arXiv 2104.02057, section 4.3); a state dict does not tell.
    """
    moco_v3 = any(re.search(r"(^|\.)(base|momentum)_encoder\.", key) for key in keys)
    return 12 if moco_v3 and width == 384 else None
