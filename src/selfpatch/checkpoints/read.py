"""Where weights come from: run directories, checkpoint files, safetensors and timm. Nothing is unpickled that could run
code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from selfpatch.checkpoints.config import LoadConfig, Side
from selfpatch.checkpoints.infer_config import infer_backbone_config
from selfpatch.checkpoints.key_mapping import known_num_heads, rename
from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.models.backbones.build import build_timm
from selfpatch.models.backbones.config import AnyBackboneConfig, ViTConfig, backbone_config_from_dict

TIMM = "timm:"

_WRAPPERS = ("state_dict", "model", "classy_state_dict", "base_model", "trunk")
"""Entries of a checkpoint that may hold the state dict, besides the side's own name; the last three are VISSL's."""

_HARMLESS: list[Any] = [
    # DINO and its descendants save their argparse options beside the tensors; a Namespace is only attributes.
    argparse.Namespace,
    # Others save their configuration in a mapping of a class of its own, or key a table by a class; a plain mapping
    # takes its place.
    (OrderedDict, "yacs.config.CfgNode"),  # Swin, MoBY
    (OrderedDict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    (OrderedDict, "lightning_fabric.utilities.data.AttributeDict"),
    (OrderedDict, "lightning.fabric.utilities.data.AttributeDict"),
    (OrderedDict, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    (OrderedDict, "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor"),
]
"""What a checkpoint may name besides tensors and plain values: classes that run nothing, and stand-ins for others."""


@dataclass(frozen=True)
class Weights:
    """Weights as they were found, in the names of our `Branch`: `backbone.trunk.*`, `pool.*`, `heads.*`."""

    state: Mapping[str, Tensor]
    shape: AnyBackboneConfig
    source: str
    sha256: str | None
    """Of the file; None for weights that timm fetched."""
    left_out: tuple[str, ...] = ()
    """Names in the file of what nothing here has a use for: queues, classifiers, other methods' heads."""


def read_weights(source: str, config: LoadConfig = LoadConfig()) -> Weights:
    """Finds and reads weights, whatever format they are in; the format is told from the keys.

    Args:
        source: a run directory, a checkpoint file of any method that `formats` knows (full or backbone only), a
            .safetensors file, or timm:NAME.
        config: which network, and what the file does not tell; a file with one network gives that one.

    Raises:
        ValueError: there is no such file, it holds no ViT, Swin or ResNet, or it would have to be unpickled.
    """
    if source.startswith(TIMM):
        if config.num_heads is not None:
            raise ValueError(f"num_heads is {config.num_heads}, but {source} has its own; leave it out")
        backbone = build_timm(source.removeprefix(TIMM), pretrained=True)
        return Weights({f"backbone.{k}": v for k, v in backbone.state_dict().items()}, backbone.config, source, None)
    path = Path(source)
    if not path.exists():
        raise ValueError(
            f"no weights at {source!r}; use a run directory, a checkpoint file, a .safetensors file or {TIMM}NAME"
        )
    weights = _read_run(path, config.side) if path.is_dir() else _read_file(path, config.side)
    return _with_heads(weights, config.num_heads)


def _with_heads(weights: Weights, num_heads: int | None) -> Weights:
    source, shape = weights.source, weights.shape
    if not isinstance(shape, ViTConfig):
        if num_heads is not None:
            raise ValueError(f"num_heads is {num_heads}, but {source} is no ViT; leave it out")
        return weights
    shape = shape if num_heads is None else replace(shape, num_heads=num_heads)
    if shape.embed_dim % shape.num_heads:
        raise ValueError(
            f"{source}: width {shape.embed_dim} cannot be split into {shape.num_heads} heads; give another --num-heads"
        )
    return replace(weights, shape=shape)


def _read_file(path: Path, side: Side) -> Weights:
    source = str(path)
    content, metadata = _safetensors_load(path) if path.suffix == ".safetensors" else (_torch_load(path), {})
    if isinstance(content, Mapping) and {"pretrainer", "shape"} <= content.keys():
        return _of_checkpoint(content, path, side, source)
    tensors = _state_dict(content, side, source)
    state, left_out = rename(tensors, side, source)
    if "shape" in metadata:
        shape = backbone_config_from_dict(json.loads(metadata["shape"]))
    else:
        shape = infer_backbone_config(state, source)
        if isinstance(shape, ViTConfig):
            shape = replace(shape, num_heads=known_num_heads(tensors, shape.embed_dim) or shape.num_heads)
    return Weights(state, shape, source, file_hash(path), left_out)


def _read_run(path: Path, side: Side) -> Weights:
    run = RunDirectory.open(path)
    newest = run.checkpoints.newest()
    if newest is not None:
        checkpoint = torch.load(newest, map_location="cpu", weights_only=True, mmap=True)
        return _of_checkpoint(checkpoint, newest, side, str(path))
    if run.exported_backbone.is_file():
        return replace(_read_file(run.exported_backbone, side), source=str(path))
    raise ValueError(f"{path} has no checkpoint yet; wait for the first one, or start the run again")


def _of_checkpoint(checkpoint: Mapping[str, Any], file: Path, side: Side, source: str) -> Weights:
    """One network of a checkpoint of a run."""
    prefix = f"{side}."
    state = {k.removeprefix(prefix): v for k, v in checkpoint["pretrainer"].items() if k.startswith(prefix)}
    return Weights(state, backbone_config_from_dict(checkpoint["shape"]), source, file_hash(file))


def _safetensors_load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None


def _torch_load(path: Path) -> Any:
    """Whatever a checkpoint holds."""
    try:
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings(action="ignore"):
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
    """The tensors of one network, or of both sides, out of whatever a checkpoint wraps them in."""
    if isinstance(content, Mapping):
        other = "student" if side == "teacher" else "teacher"  # some files hold one network, whichever was asked for
        for key in (side, *_WRAPPERS, other):
            if isinstance(content.get(key), Mapping):
                return _state_dict(content[key], side, source)
        tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        if tensors:
            return tensors
    raise ValueError(
        f"{source} holds no state dict; tensors by name are needed, by themselves or under {side!r}, "
        "'state_dict' or 'model'"
    )


def file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
