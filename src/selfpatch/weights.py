"""Weights in and out: released checkpoints, run directories, safetensors and timm, with a strict report."""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from selfpatch.nn.backbones import AnyShape, Backbone, ViTShape, build_backbone, build_timm, shape_from_dict
from selfpatch.nn.branch import BranchEncoder
from selfpatch.nn.heads import AveragePool, ClassAttentionPool
from selfpatch.run import RunDirectory

TIMM = "timm:"
Side = Literal["teacher", "student"]
_NOT_BACKBONE = ("pool.", "heads.")
"""Beginnings of the names, in our terms, that a backbone may leave out. Other names must find their place."""

_RENAMES = [  # released name -> name in our Branch, tried in this order
    (r"^module\.", ""),
    (r"^(head|c_head)\.", "heads.image."),
    (r"^p_head\.", "heads.patch."),
    (r"^ca_head\.cls_token$", "pool.query"),
    (r"^ca_head\.cls_blocks\.(\d+)\.mlp\.fc1\.", r"pool.blocks.\1.mlp.0."),
    (r"^ca_head\.cls_blocks\.(\d+)\.mlp\.fc2\.", r"pool.blocks.\1.mlp.2."),
    (r"^ca_head\.cls_blocks\.", "pool.blocks."),
    (r"^ca_head\.", "pool."),
    (r"^backbone\.(?!trunk\.)", "backbone.trunk."),
    (r"^(?=(cls_token|pos_embed|patch_embed\.|blocks\.|norm\.))", "backbone.trunk."),
]


@dataclass(frozen=True)
class Weights:
    """Weights as they were found, in the names of our `Branch`: `backbone.trunk.*`, `pool.*`, `heads.*`."""

    state: Mapping[str, Tensor]
    shape: AnyShape
    source: str
    sha256: str | None
    """Of the file; None for weights that timm fetched."""


@dataclass(frozen=True)
class LoadReport:
    """Which keys of a state dict found their place."""

    source: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    """Keys that are not wanted here, such as projection heads."""
    sha256: str | None = None
    """Of the file."""

    def __str__(self) -> str:
        parts = [f"{self.source}: {len(self.matched)} keys matched"]
        for word, keys in [("missing", self.missing), ("unexpected", self.unexpected), ("left out", self.left_out)]:
            if keys:
                parts.append(f"{len(keys)} {word} ({_some(keys)})")
        return ", ".join(parts)


def read_weights(source: str, *, side: Side = "teacher", num_heads: int | None = None) -> Weights:
    """Finds and reads weights, whatever format they are in; the format is told from the keys.

    Args:
        source: a run directory, a checkpoint file of DINO or SelfPatch (full or backbone only), a .safetensors file, or
            timm:NAME.
        side: which network of a full checkpoint.
        num_heads: attention heads; they leave no trace in a state dict. None: as the file says, else width / 64.

    Raises:
        ValueError: there is no such file, it holds no vision transformer, or it would have to be unpickled.
    """
    if source.startswith(TIMM):
        if num_heads is not None:
            raise ValueError(f"num_heads is {num_heads}, but {source} has its own; leave it out")
        backbone = build_timm(source.removeprefix(TIMM), pretrained=True)
        return Weights({f"backbone.{k}": v for k, v in backbone.state_dict().items()}, backbone.shape, source, None)
    path = Path(source)
    if not path.exists():
        raise ValueError(
            f"no weights at {source!r}; use a run directory, a checkpoint file, a .safetensors file or {TIMM}NAME"
        )
    weights = _read_run(path, side) if path.is_dir() else _read_file(path, side)
    if not isinstance(weights.shape, ViTShape):
        if num_heads is not None:
            raise ValueError(f"num_heads is {num_heads}, but {source} is no ViT; leave it out")
        return weights
    shape = weights.shape if num_heads is None else replace(weights.shape, num_heads=num_heads)
    if shape.num_heads < 1 or shape.embed_dim % shape.num_heads:
        raise ValueError(
            f"{source}: width {shape.embed_dim} cannot be split into {shape.num_heads} heads; give another --num-heads"
        )
    return replace(weights, shape=shape)


def _read_file(path: Path, side: Side) -> Weights:
    source = str(path)
    metadata: Mapping[str, str] = {}
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                raw = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{source} is not a readable safetensors file: {error}") from None
    else:
        raw = _state_dict(_torch_load(path), side, source)
    state = to_branch_names(raw)
    shape = shape_from_dict(json.loads(metadata["shape"])) if "shape" in metadata else infer_shape(state, source)
    return Weights(state, shape, source, file_hash(path))


def _read_run(path: Path, side: Side) -> Weights:
    run = RunDirectory.open(path)
    newest = run.newest_checkpoint()
    if newest is not None:
        checkpoint = torch.load(newest, map_location="cpu", weights_only=True, mmap=True)
        prefix = f"{side}."
        state = {k.removeprefix(prefix): v for k, v in checkpoint["pretrainer"].items() if k.startswith(prefix)}
        return Weights(state, shape_from_dict(checkpoint["shape"]), str(path), file_hash(newest))
    exported = path / "exported" / "backbone.safetensors"
    if exported.is_file():
        return replace(_read_file(exported, side), source=str(path))
    raise ValueError(f"{path} has no checkpoint yet; wait for the first one, or start the run again")


def _torch_load(path: Path) -> Any:
    try:
        # DINO and its descendants save their argparse options beside the tensors; a Namespace is only attributes.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} holds more than tensors and plain values, and unpickling it could run code; "
            "save its state dict as .safetensors"
        ) from None
    except PermissionError:
        raise
    except Exception:  # on what is no checkpoint the unpickler fails in nearly any way, and says nothing of use
        raise ValueError(
            f"{path} is no checkpoint, or a damaged one; give a file that torch.save or safetensors wrote"
        ) from None


def _state_dict(content: Any, side: Side, source: str) -> dict[str, Tensor]:
    """The tensors of one network out of whatever a checkpoint wraps them in."""
    if isinstance(content, Mapping):
        for key in (side, "state_dict", "model"):
            if isinstance(content.get(key), Mapping):
                return _state_dict(content[key], side, source)
        tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        if tensors:
            return tensors
    raise ValueError(
        f"{source} holds no state dict; tensors by name are needed, by themselves or under {side!r}, "
        "'state_dict' or 'model'"
    )


def to_branch_names(raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Released names -> the names of our `Branch`; names it does not know stay as they are."""
    state = {}
    for name, tensor in raw.items():
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        state[name] = tensor.flatten(0, 1) if name == "pool.query" and tensor.ndim == 3 else tensor
    return state


def infer_shape(state: Mapping[str, Tensor], source: str) -> ViTShape:
    """The architecture that a state dict in our names was made with.

    Raises:
        ValueError: these are not the weights of a plain vision transformer.
    """
    trunk = {k.removeprefix("backbone.trunk."): v for k, v in state.items() if k.startswith("backbone.trunk.")}
    patch, positions = trunk.get("patch_embed.proj.weight"), trunk.get("pos_embed")
    if patch is None or positions is None or patch.ndim != 4 or positions.ndim != 3:
        raise ValueError(f"{source} holds no plain vision transformer; its keys are {_some(tuple(state))}")
    class_token = "cls_token" in trunk
    tokens = positions.shape[1] - class_token
    grid = round(tokens**0.5)
    if grid * grid != tokens:
        raise ValueError(f"{source} has position embeddings for {tokens} patches, which is no square grid")
    return ViTShape(
        embed_dim=patch.shape[0],
        depth=1 + max((int(k.split(".")[1]) for k in trunk if k.startswith("blocks.")), default=-1),
        num_heads=max(1, patch.shape[0] // 64),
        patch_size=patch.shape[-1],
        grid=grid,
        class_token=class_token,
        final_norm="norm.weight" in trunk,
        in_channels=patch.shape[1],
    )


def load_backbone(backbone: Backbone, weights: Weights, *, allow_partial: bool = False) -> LoadReport:
    """Copies weights into a backbone. CLS token, its position and final norm are left out for a trunk that has none.

    Raises:
        ValueError: a key is missing, unexpected or of another shape, unless `allow_partial`.
    """
    state = {k.removeprefix("backbone."): v for k, v in weights.state.items() if not k.startswith(_NOT_BACKBONE)}
    left_out = [k for k in weights.state if k.startswith(_NOT_BACKBONE)]
    if not backbone.has_class_token and "trunk.cls_token" in state:
        state["trunk.pos_embed"] = state["trunk.pos_embed"][:, 1:]
    own = backbone.state_dict()
    if "mask_token" in own:
        state.setdefault("mask_token", own["mask_token"])  # most weights have none; it is learned soon
    for name in ("trunk.cls_token", "trunk.norm.weight", "trunk.norm.bias", "mask_token"):
        if name in state and name not in own:
            del state[name]
            left_out.append(f"backbone.{name}")
    return load_strictly(backbone, state, weights.source, allow_partial=allow_partial, left_out=tuple(left_out))


def load_strictly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    *,
    allow_partial: bool = False,
    left_out: tuple[str, ...] = (),
) -> LoadReport:
    """`load_state_dict` with a report; all keys must match unless `allow_partial`. Shapes always must.

    Raises:
        ValueError: they do not.
    """
    own = module.state_dict()
    for name in own:
        if name in state and own[name].shape != state[name].shape:
            raise ValueError(
                f"{source} is of another architecture: {name} is {list(state[name].shape)} there "
                f"and {list(own[name].shape)} here; name its architecture with --model and --patch-size"
            )
    report = LoadReport(
        source,
        matched=tuple(k for k in own if k in state),
        missing=tuple(k for k in own if k not in state),
        unexpected=tuple(k for k in state if k not in own),
        left_out=left_out,
    )
    if (report.missing or report.unexpected) and not allow_partial:
        raise ValueError(f"{report}; give --allow-partial to load what matches")
    module.load_state_dict({k: state[k] for k in report.matched}, strict=False)
    return report


def load_encoder(
    source: str,
    *,
    side: Side = "teacher",
    num_heads: int | None = None,
    position_embedding: Literal["released", "size"] | None = None,
    normed_patches: bool = True,
    allow_partial: bool = False,
) -> tuple[BranchEncoder, LoadReport]:
    """Weights from anywhere as an `Encoder`, in evaluation mode.

    Raises:
        ValueError: as `read_weights` and `load_strictly`.
    """
    weights = read_weights(source, side=side, num_heads=num_heads)
    shape = weights.shape
    if position_embedding is not None and isinstance(shape, ViTShape):
        shape = replace(shape, position_embedding=position_embedding)
    backbone = build_backbone(shape)
    pool = _pool(_part(weights.state, "pool."), shape)
    encoder = BranchEncoder(backbone, pool, normed_patches=normed_patches)
    wanted = {k: v for k, v in weights.state.items() if not k.startswith("heads.") and k != "backbone.mask_token"}
    left_out = tuple(k for k in weights.state if k not in wanted)
    report = load_strictly(encoder, wanted, source, allow_partial=allow_partial, left_out=left_out)
    return encoder.eval(), replace(report, sha256=weights.sha256)


def export_state(encoder: BranchEncoder) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of an exported file. The trunk's keys are timm's own, so that timm loads them as they
    are; those of the pool begin with `pool.`."""
    state = {k.removeprefix("backbone.trunk."): v.contiguous() for k, v in encoder.state_dict().items()}
    shape = encoder.backbone.shape
    return state, {"format": "pt"} | {"shape": json.dumps(shape.to_dict())}


def _pool(state: Mapping[str, Tensor], shape: AnyShape) -> nn.Module | None:
    if not state:
        return None
    if "query" not in state:
        return AveragePool(shape.dim)
    blocks = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("blocks."))
    return ClassAttentionPool(shape.dim, shape.num_heads, blocks=blocks)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _some(keys: tuple[str, ...], count: int = 4) -> str:
    return ", ".join(keys[:count]) + (", ..." if len(keys) > count else "")
