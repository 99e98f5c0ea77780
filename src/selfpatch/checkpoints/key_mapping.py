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

import re
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from selfpatch.checkpoints.config import Side
from selfpatch.checkpoints.huggingface_keys import from_huggingface, is_huggingface_key
from selfpatch.models.backbones import convnext_keys, dinov3_keys

SIDES: dict[Side, str] = {
    "teacher": r"(^|\.)(teacher(_\w+)?|momentum_\w+|\w+_momentum|encoder_k|target_\w+|ema(_\w+)?|\w+_ema)\.",
    "student": r"(^|\.)(student(_\w+)?|base_encoder|encoder_q|encoder|online_\w+)\.",
}
"""Prefixes of a trunk's keys where one state dict holds both sides: MoCo-v3, MoCo-v2, ReSim, MoBY, mmselfsup, DINOv2,
lightly, Leopart (whose student is under `model.` and counts as the unnamed side)."""

TRUNK = "backbone.trunk."

WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""Parts of keys that DDP, torch.compile, FSDP and checkpointed activations add."""

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
    r"(projector|projector_k|predictor|projection_head|prediction_head|neck|\d+)\..+",  # MoCo-v3, MoBY, SwAV, mmselfsup
    r"(encoder_[qk]|teacher|student)\..+",  # parts of such a network after the trunk
    r"(prototypes\w*\..+|prototypes|queue\w*|centers?)",  # SwAV, Leopart; MoCo, MoBY, DenseCL
    r"fpn_\w+\..+",  # ReSim
    r"decoder(_\w+)?(\..+)?",  # MAE
    r"norms\..+",  # DINOv3's ConvNeXt, which saves its final norm twice
    r"(student|teacher|online|target|momentum)_\w*(head|project|predict)\w*\..+",  # heads beside a `teacher_backbone`
    r"(projection|prediction)_head_momentum\..+",  # lightly
    r"(\w+_)?(loss|criterion)\..+",  # centres of DINOv2 and lightly
    r"n_averaged",  # torch's AveragedModel
    r"local_cls_norm\..+",  # norm of the class tokens of local crops in training (DINOv3's 7B)
    r"(.+\.)?(relative_position_index|attn_mask)",  # tables that Swin computes
]
"""Patterns of whole keys that only training needs, or that can be computed."""

SPELLINGS = [
    (r"^(backbone\.trunk\.blocks)\.\d+\.(\d+)\.", r"\1.\2."),  # DINOv2 numbers its chunks, then the blocks in them
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.register_tokens$", ".reg_token"),
    (r"\.parametrizations\.weight\.original0$", ".weight_g"),  # torch's newer way of normalising weights
    (r"\.parametrizations\.weight\.original1$", ".weight_v"),
    *dinov3_keys.SPELLINGS,
]
"""Parts of our keys that others name differently; all apply."""

_FIRST_LAYERS = re.compile(r"((?:.+\.)?)(patch_embed\.proj|layer1\.0\.conv1|stem\.0)\.weight")


def map_keys(raw: Mapping[str, Tensor], side: Side, source: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the network of one side in the keys of our `Branch`, or the only network there is; also unused keys.

    Unknown keys stay as they are.

    Raises:
        ValueError: several networks have ambiguous names, or two keys are the same tensor of a network.
    """
    originals = _unwrapped(raw, source)
    raw = from_huggingface({key: raw[original] for key, original in originals.items()}, source)
    raw = convnext_keys.from_any(raw)
    keys, left_out = _new_keys(raw, side, source)
    statistics = [
        key for key in keys if re.fullmatch(r"heads\..+\.(running_mean|running_var|num_batches_tracked)", key)
    ]
    unused = [*_shared_prototypes(keys, raw), *statistics, *_mask_token_of_decoder(keys, raw)]
    left_out += [keys.pop(key) for key in unused]
    if f"{TRUNK}layers.0.downsample.reduction.weight" in keys:
        keys = {move_patch_merging(key, 1): old for key, old in keys.items()}
    state = dinov3_keys.join_parts({key: _reshaped(key, raw[old]) for key, old in keys.items()})
    if _is_eva02(keys, state):
        raise ValueError(
            f"{source} holds an EVA-02, whose rotary positions no tensor shows; give it as timm:NAME, or the folder of "
            "timm's with its config.json"
        )
    cls_token, positions, registers = (f"{TRUNK}{name}" for name in ("cls_token", "pos_embed", "reg_token"))
    if registers in state and not state[registers].numel():  # transformers' DINOv3 saves them where it has none
        del state[registers]
    if keys.get(registers, "").endswith("register_tokens") and {cls_token, positions} <= state.keys():
        # DINOv2 with registers stores a position of the CLS token, which timm adds to the token itself.
        state[cls_token] = state[cls_token] + state[positions][:, :1]
        state[positions] = state[positions][:, 1:]
    for key in [key for key in state if key.startswith(TRUNK) and key.endswith(".running_mean")]:
        # Older checkpoints lack the batch counts of batch norms; nothing depends on their values.
        state.setdefault(key.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return state, tuple(originals.get(key, key) for key in left_out)


def _unwrapped(keys: Iterable[str], source: str) -> dict[str, str]:
    """Return {key without what DDP and torch.compile add: key}.

    Raises:
        ValueError: two keys are then the same.
    """
    found: dict[str, str] = {}
    for key in keys:
        short = WRAPPERS.sub("", key)
        if short in found:
            raise ValueError(f"{source} holds {short!r} twice, once as {key!r}; save the state dict of one network")
        found[short] = key
    return found


def _new_keys(keys: Collection[str], side: Side, source: str) -> tuple[dict[str, str], list[str]]:
    """Return {our key: key of the checkpoint} of one network, and the keys that are left out."""
    trunks = _trunk_prefixes(keys)
    trunk = _choose_trunk(trunks, side, source) if trunks else ""
    own = _with_parents(trunk)
    prefixes = {*own, *(prefix for other in trunks for prefix in _with_parents(other))}
    mapped: dict[str, str] = {}
    left_out = []
    for key in keys:
        prefix = max(filter(key.startswith, prefixes), key=len)
        if prefix not in own:
            continue  # part of another network
        bare = key.removeprefix(prefix)
        if prefix == trunk and f"{trunk}norm.weight" not in keys:  # timm's ViTs that average normalise afterwards
            bare = re.sub(r"^fc_norm\.", "norm.", bare)
        new = next((re.sub(pattern, name, bare) for pattern, name in RENAMES if re.fullmatch(pattern, bare)), None)
        if new is None and trunks and any(re.fullmatch(pattern, bare) for pattern in LEFT_OUT):
            left_out.append(key)
            continue
        if new is None and trunks and prefix == trunk:
            new = TRUNK + bare
        if new is not None:
            for pattern, spelling in SPELLINGS:
                new = re.sub(pattern, spelling, new)
        twin = mapped.setdefault(new or key, key)
        if twin != key:
            raise ValueError(
                f"{source} holds {new} twice, as {twin!r} and {key!r}; save the names and tensors of one network"
            )
    return mapped, left_out


def _trunk_prefixes(keys: Collection[str]) -> list[str]:
    """Return the key prefix of each trunk, found by the keys of its first layers."""
    found = [_FIRST_LAYERS.fullmatch(key) for key in keys]
    second = {"patch_embed.proj": "", "layer1.0.conv1": "conv1.weight", "stem.0": "stages.0.blocks.0.conv_dw.weight"}
    return [m[1] for m in found if m and (not second[m[2]] or f"{m[1]}{second[m[2]]}" in keys)]


def is_trunk_key(key: str) -> bool:
    """Return whether a key is of the first layers that a trunk is found by."""
    return _FIRST_LAYERS.fullmatch(key) is not None or is_huggingface_key(key)


def _choose_trunk(trunks: Iterable[str], side: Side, source: str) -> str:
    """Return the requested side's trunk, else one without a side, else the other side's."""

    def rank(trunk: str) -> int:
        found = next((name for name, pattern in SIDES.items() if re.search(pattern, trunk)), None)
        return 0 if found == side else 1 if found is None else 2

    best = min(map(rank, trunks))
    first, *others = (trunk for trunk in trunks if rank(trunk) == best)
    if others:
        raise ValueError(
            f"{source} holds {1 + len(others)} networks, {' and '.join(map(repr, (first, *others)))}; "
            "save the names and tensors of one of them by themselves"
        )
    return first


def _with_parents(prefix: str) -> list[str]:
    """Return a trunk's prefix and those that its siblings may have: `a.b.` -> [``, `a.`, `a.b.`]."""
    parts = prefix.split(".")[:-1]
    return ["".join(f"{part}." for part in parts[:i]) for i in range(len(parts) + 1)]


def _shared_prototypes(keys: Mapping[str, str], raw: Mapping[str, Tensor]) -> list[str]:
    """Return the keys of iBOT's patch prototypes if they are saved twice, shared with the image tokens."""
    twins = {k: k.replace("heads.masked_patch.", "heads.image.") for k in keys if k.startswith("heads.masked_patch.")}
    shared = all(image in keys and _equal(raw[keys[patch]], raw[keys[image]]) for patch, image in twins.items())
    return list(twins) if shared else []


def _mask_token_of_decoder(keys: Mapping[str, str], raw: Mapping[str, Tensor]) -> list[str]:
    """Return the key of the mask token if it is not of the trunk's width: MAE's is the decoder's."""
    token, first = (keys.get(key) for key in ("backbone.mask_token", f"{TRUNK}patch_embed.proj.weight"))
    differs = token is not None and first is not None and raw[token].shape[-1:] != raw[first].shape[:1]
    return ["backbone.mask_token"] if differs else []


def _is_eva02(keys: Collection[str], state: Mapping[str, Tensor]) -> bool:
    """Return whether a ViT has learned positions, no bias of keys and a gated MLP, as EVA-02 alone has."""
    if not {f"{TRUNK}pos_embed", f"{TRUNK}blocks.0.attn.q_bias"} <= set(keys):
        return False
    first, second = (state.get(f"{TRUNK}blocks.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    return first is not None and second is not None and first.shape[:1] == (2 * second.shape[-1],)


def _equal(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal, as far as a dry run, which reads no values, can tell."""
    return a.shape == b.shape and (a.is_meta or torch.equal(a, b))


def move_patch_merging(key: str, by: int) -> str:
    """Return a Swin's key with patch merging moved from the end of a stage (original) to the next stage (timm).

    Args:
        key: any key.
        by: 1, or -1 for the other direction.
    """
    return re.sub(r"\blayers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + by}.downsample.", key)


def _reshaped(key: str, tensor: Tensor) -> Tensor:
    if key in ("pool.query", "backbone.mask_token") and tensor.ndim == 3:
        return tensor.flatten(0, 1)
    if key.startswith("heads.") and tensor.ndim == 4:  # 1x1 convolutions (SERE)
        return tensor.flatten(1)
    return tensor


def known_num_heads(keys: Iterable[str], width: int) -> int | None:
    """Return the number of attention heads where a format differs from the usual 64 channels a head.

    The exception is MoCo-v3's ViT-S with 12 heads (arXiv 2104.02057, section 4.3); a state dict does not record heads.
    """
    moco_v3 = any(re.search(r"(^|\.)(base|momentum)_encoder\.", key) for key in keys)
    return 12 if moco_v3 and width == 384 else None
