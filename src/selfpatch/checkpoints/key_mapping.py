"""The names of released checkpoints -> the names of our `Branch`. A new format is a row in one of the tables.

find the trunks, by names that no trunk goes without; choose the one of the side that is asked for
for each name of a checkpoint:
    it belongs to the network of the other side:      pass over it
    cut off what comes before the trunk's names, or before those of its siblings (heads, queues)
    it is in RENAMES:                                 that is its name
    it is in LEFT_OUT:                                nothing here has a use for it, and the report names it
    it lies in the trunk:                             backbone.trunk.<name>, in timm's terms
    else:                                             it stays as it is, and loading refuses it by name
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from selfpatch.checkpoints.config import Side
from selfpatch.checkpoints.huggingface_keys import to_released_names

SIDES: dict[Side, str] = {
    "teacher": r"(^|\.)(teacher|momentum_encoder|encoder_k|target_encoder|target_network|ema)\.",
    "student": r"(^|\.)(student|base_encoder|encoder_q|encoder|online_encoder|online_network)\.",
}
"""What comes before a trunk's names where one state dict holds both sides: MoCo-v3, MoCo-v2, ReSim, MoBY, mmselfsup,
DINOv2, Leopart (whose student is under `model.` and is taken as the side that is not named)."""

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
"""Whole names, after what comes before them was cut off; the first that fits counts."""

LEFT_OUT = [
    r"(head|head_dist|ibot_head|dino_head|fc\w*|mlp\w*|pre_logits|classifier|pooler)\..+",  # classifiers, projections
    r"(projector|projector_k|predictor|projection_head|neck|\d+)\..+",  # MoCo-v3, MoBY, SwAV, mmselfsup
    r"(encoder_[qk]|teacher|student)\..+",  # what else such a network holds: its parts after the trunk
    r"(prototypes\w*\..+|prototypes|queue\w*|centers?)",  # SwAV, Leopart; MoCo, MoBY, DenseCL
    r"fpn_\w+\..+",  # ReSim
    r"\w+_loss\..+",  # centres of DINOv2
    r"(.+\.)?(relative_position_index|attn_mask)",  # tables that Swin makes anew
]
"""Whole names that belong to training, or can be computed."""

_WITHIN_TRUNK = [
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # blocks in chunks, with their own number behind (DINOv2)
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"^register_tokens$", "reg_token"),
]
"""Parts of a trunk's names that timm calls something else; all apply."""

_WITHIN_HEADS = [
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),  # torch's newer way of normalising weights
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
]
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class Renamed(NamedTuple):
    """One network of a checkpoint."""

    state: dict[str, Tensor]
    left_out: tuple[str, ...]
    """Names, as they were found, that nothing here has a use for."""


def to_branch_names(raw: Mapping[str, Tensor], side: Side = "teacher") -> dict[str, Tensor]:
    """Released names -> the names of our `Branch`; names it does not know stay as they are."""
    return rename(raw, side, "the state dict").state


def rename(raw: Mapping[str, Tensor], side: Side, source: str) -> Renamed:
    """The network of one side, in the names of our `Branch`; the other's where there is only one.

    Raises:
        ValueError: there are several, and nothing says which is which.
    """
    raw = to_released_names(raw)
    names, left_out = _new_names(raw, side, source)
    unused = [
        *_shared_prototypes(names, raw),
        *(n for n in names if n.startswith("heads.") and n.endswith(_STATISTICS)),
    ]
    left_out += [names.pop(name) for name in unused]
    if f"{TRUNK}layers.0.downsample.reduction.weight" in names:
        names = {_merge_at_begin(name): old for name, old in names.items()}
    state = {name: _reshaped(name, raw[old]) for name, old in names.items()}
    if names.get(f"{TRUNK}reg_token", "").endswith("register_tokens"):
        _fold_class_position(state)
    _complete_batch_norms(state)
    return Renamed(state, tuple(left_out))


def _new_names(names: Collection[str], side: Side, source: str) -> tuple[dict[str, str], list[str]]:
    """{our name: name as found} of one network, and the names that are left out."""
    trunks = trunk_prefixes(names)
    own = _choose(trunks, side, source) if trunks else ""
    found, left_out = {}, []
    for name in names:
        prefix = _prefix(name, own, trunks)
        if prefix is None:
            continue
        bare = name.removeprefix(prefix)
        new = _renamed(bare)
        if new is not None:
            found[new] = name
        elif trunks and any(re.fullmatch(pattern, bare) for pattern in LEFT_OUT):
            left_out.append(name)
        else:
            in_trunk = trunks and prefix == own
            found[TRUNK + _replaced(bare, _WITHIN_TRUNK) if in_trunk else name] = name
    return found, left_out


def _prefix(name: str, own: str, trunks: Iterable[str]) -> str | None:
    """What to cut off a name: all that comes before the own trunk's names, or the part of it that a sibling shares.
    None: the name belongs to another network, its trunk or what lies beside that.
    """
    if max((t for t in trunks if name.startswith(t)), key=len, default=own) != own:
        return None
    ways = [own, *_parents(own)]
    apart = [place for trunk in trunks for place in _parents(trunk) if place not in ways]
    if not name.startswith(own) and name.startswith(tuple(apart)):
        return None
    return next(place for place in ways if name.startswith(place))


def trunk_prefixes(names: Collection[str]) -> list[str]:
    """What comes before the names of each trunk: of a ViT or Swin, that of its patch embedding; of a ResNet, that of
    its first layers.
    """
    vision_transformers = [
        n.removesuffix("patch_embed.proj.weight") for n in names if n.endswith("patch_embed.proj.weight")
    ]
    convolutional = [n.removesuffix("conv1.weight") for n in names if n.endswith("conv1.weight")]
    found = vision_transformers + [p for p in convolutional if f"{p}layer1.0.conv1.weight" in names]
    return [prefix for prefix in found if prefix == "" or prefix.endswith(".")]


def _choose(trunks: Iterable[str], side: Side, source: str) -> str:
    def side_of(trunk: str) -> Side | None:
        return next((name for name, pattern in SIDES.items() if re.search(pattern, trunk)), None)

    other: Side = "student" if side == "teacher" else "teacher"
    of_side = {wanted: [t for t in trunks if side_of(t) == wanted] for wanted in (side, None, other)}
    chosen = next(found for found in of_side.values() if found)
    if len(chosen) > 1:
        raise ValueError(
            f"{source} holds {len(chosen)} networks, {' and '.join(repr(t) for t in chosen)}; "
            "save the names and tensors of one of them by themselves"
        )
    return chosen[0]


def _parents(prefix: str) -> list[str]:
    """`a.b.` -> [`a.`, ``]: where the siblings of a trunk may be."""
    parts = prefix.split(".")[:-1]
    return ["".join(f"{part}." for part in parts[:i]) for i in reversed(range(max(1, len(parts))))]


def _renamed(bare: str) -> str | None:
    for pattern, replacement in RENAMES:
        match = re.fullmatch(pattern, bare)
        if match is not None:
            return _replaced(match.expand(replacement), _WITHIN_HEADS)
    return None


def _replaced(name: str, table: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def _shared_prototypes(names: Mapping[str, str], raw: Mapping[str, Tensor]) -> list[str]:
    """The patches' prototypes of iBOT where they are the image tokens' own, saved twice."""
    twice = {n: n.replace("heads.masked_patch.", "heads.image.") for n in names if n.startswith("heads.masked_patch.")}
    shared = all(image in names and torch.equal(raw[names[own]], raw[names[image]]) for own, image in twice.items())
    return list(twice) if shared else []


def _merge_at_begin(name: str) -> str:
    """Patches are merged at the end of a stage in Swin's own code, at the beginning of the next one in timm's."""
    return re.sub(
        rf"^({re.escape(TRUNK)}layers\.)(\d+)\.downsample\.", lambda m: f"{m[1]}{int(m[2]) + 1}.downsample.", name
    )


def _reshaped(name: str, tensor: Tensor) -> Tensor:
    if name in ("pool.query", "backbone.mask_token") and tensor.ndim == 3:
        return tensor.flatten(0, 1)
    if name.startswith("heads.") and tensor.ndim == 4:  # convolutions of one pixel (SERE)
        return tensor.flatten(1)
    return tensor


def _fold_class_position(state: dict[str, Tensor]) -> None:
    """DINOv2 with registers stores a position of the CLS token; timm and we add it to that token once and for all."""
    cls_token, positions = (f"{TRUNK}{name}" for name in ("cls_token", "pos_embed"))
    if cls_token in state and positions in state:
        state[cls_token] = state[cls_token] + state[positions][:, :1]
        state[positions] = state[positions][:, 1:]


def _complete_batch_norms(state: dict[str, Tensor]) -> None:
    """Older checkpoints do not count batches, and nothing depends on the count."""
    for name in list(state):
        if name.startswith(TRUNK) and name.endswith(".running_mean"):
            state.setdefault(name.removesuffix("running_mean") + "num_batches_tracked", torch.tensor(0))


def known_num_heads(names: Iterable[str], width: int) -> int | None:
    """Attention heads leave no trace in a state dict, and nearly all have 64 channels; MoCo-v3's ViT-S is the exception
    with 12 heads (arXiv 2104.02057, section 4.3).
    """
    moco_v3 = any(re.search(r"(^|\.)(base|momentum)_encoder\.", name) for name in names)
    return 12 if moco_v3 and width == 384 else None
