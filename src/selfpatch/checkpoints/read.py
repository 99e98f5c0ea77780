"""Weights from run directories, checkpoint files, safetensors and timm, unpickling nothing that could run code."""

import argparse
import hashlib
import json
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from selfpatch.checkpoints.config import DEFAULTS, LoadConfig, Side
from selfpatch.checkpoints.infer_config import infer_backbone_config
from selfpatch.checkpoints.key_mapping import known_num_heads, map_keys
from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.core.dry_run import in_dry_run
from selfpatch.models.backbones.build import build_timm
from selfpatch.models.backbones.config import AnyBackboneConfig, ViTConfig, backbone_config_from_dict

TIMM = "timm:"

_WRAPPERS = ("state_dict", "model", "classy_state_dict", "base_model", "trunk")
"""Entries of a checkpoint that may hold the state dict, apart from the side's own name; the last three are VISSL's."""

_SAFE_CLASSES: list[Any] = [
    # DINO and its descendants save their argparse options with the tensors; a Namespace holds only attributes.
    argparse.Namespace,
    # Others save a configuration or a table of a custom mapping class; a plain mapping replaces it.
    (OrderedDict, "yacs.config.CfgNode"),  # Swin, MoBY
    (OrderedDict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    (OrderedDict, "lightning_fabric.utilities.data.AttributeDict"),
    (OrderedDict, "lightning.fabric.utilities.data.AttributeDict"),
    (OrderedDict, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"),
    (OrderedDict, "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor"),
]
"""Classes that a checkpoint may name: they run nothing, or a plain mapping takes their place."""


@dataclass(frozen=True)
class Weights:
    """Weights of one network in the keys of our `Branch`: `backbone.trunk.*`, `pool.*`, `heads.*`."""

    state: Mapping[str, Tensor]
    config: AnyBackboneConfig
    source: str
    sha256: str | None
    """Hash of the file; None for weights that timm fetched, and in a dry run."""
    left_out: tuple[str, ...] = ()
    """Keys of the file that nothing here uses: queues, classifiers, other methods' heads."""


def read_weights(source: str, config: LoadConfig = DEFAULTS) -> Weights:
    """Read weights; the format is inferred from the keys. A dry run reads the shapes alone, and fetches nothing.

    Args:
        source: a run directory, a checkpoint file of a method in `key_mapping` (full or backbone only), a .safetensors
            file, or timm:NAME.
        config: which network is read; a file that holds only one gives that one.

    Raises:
        ValueError: there is no such file, it holds no ViT, Swin or ResNet, or unpickling it could run code.
    """
    if source.startswith(TIMM):
        if config.num_heads is not None:
            raise ValueError(f"num_heads is {config.num_heads}, but {source} has its own; leave it out")
        backbone = build_timm(source.removeprefix(TIMM), pretrained=not in_dry_run())
        weights = Weights({f"backbone.{k}": v for k, v in backbone.state_dict().items()}, backbone.config, source, None)
    elif (path := Path(source)).exists():
        weights = replace(_read_path(path, config.side), source=source)
    else:
        raise ValueError(
            f"no weights at {source!r}; use a run directory, a checkpoint file, a .safetensors file or {TIMM}NAME"
        )
    found = weights.config
    if not isinstance(found, ViTConfig):
        if config.num_heads is not None:
            raise ValueError(f"num_heads is {config.num_heads}, but {source} is no ViT; leave it out")
        return weights
    num_heads = config.num_heads or found.num_heads
    if found.embed_dim % num_heads:
        raise ValueError(
            f"{source}: width {found.embed_dim} cannot be split into {num_heads} heads; give another --num-heads"
        )
    positions = config.position_embedding or found.position_embedding
    return replace(weights, config=replace(found, num_heads=num_heads, position_embedding=positions))


def weights_file(path: Path) -> Path:
    """Return the file itself, or the newest checkpoint of a run, or its exported network if there is no checkpoint."""
    if not path.is_dir():
        return path
    run = RunDirectory.open(path)
    file = run.checkpoints.newest() or run.exported_backbone
    if not file.is_file():
        raise ValueError(f"{run.path} has no checkpoint yet; wait for the first one, or start the run again")
    return file


def _read_path(path: Path, side: Side) -> Weights:
    path = weights_file(path)
    source = str(path)
    content: Any
    content, metadata = _load_safetensors(path) if path.suffix == ".safetensors" else (_load_pickle(path), {})
    left_out: tuple[str, ...] = ()
    if isinstance(content, Mapping) and {"pretrainer", "shape"} <= content.keys():  # a checkpoint of a run
        state = {k.removeprefix(f"{side}."): v for k, v in content["pretrainer"].items() if k.startswith(f"{side}.")}
        config = backbone_config_from_dict(content["shape"])
    else:
        tensors = _find_state_dict(content, side, source)
        state, left_out = map_keys(tensors, side, source)
        if "shape" in metadata:
            config = backbone_config_from_dict(json.loads(metadata["shape"]))
        else:
            config = infer_backbone_config(state, source)
            if isinstance(config, ViTConfig):
                config = replace(config, num_heads=known_num_heads(tensors, config.embed_dim) or config.num_heads)
    return Weights(state, config, source, None if in_dry_run() else file_sha256(path), left_out)


def file_sha256(path: Path) -> str:
    """Return the hash of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            read = partial(_empty, file) if in_dry_run() else file.get_tensor
            return {name: read(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from None


def _empty(file: Any, name: str) -> Tensor:
    """Return a tensor of a safetensors file without its values."""
    return torch.empty(file.get_slice(name).get_shape(), device="meta")


def _load_pickle(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(_SAFE_CLASSES), warnings.catch_warnings(action="ignore"):
            # Mapping a file spares the reading of its optimizer state; only files of the newer format can be mapped.
            device = "meta" if in_dry_run() else "cpu"  # on meta, only the shapes are read
            return torch.load(path, map_location=device, weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError:
        raise ValueError(
            f"{path} holds more than tensors and plain values, and unpickling it could run code; "
            "save its state dict as .safetensors"
        ) from None
    except PermissionError:
        raise
    except Exception:  # the unpickler fails in many ways on other files, and its messages do not help
        raise ValueError(
            f"{path} is no checkpoint, or a damaged one; give a file that torch.save or safetensors wrote"
        ) from None


def _find_state_dict(content: Any, side: Side, source: str) -> dict[str, Tensor]:
    """Return the tensors of one network, or of both sides, from inside the entries that wrap them."""
    if isinstance(content, Mapping):
        other = "student" if side == "teacher" else "teacher"  # some files hold one network, under either name
        for key in (side, *_WRAPPERS, other):
            if isinstance(content.get(key), Mapping):
                return _find_state_dict(content[key], side, source)
        tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
        if tensors:
            return tensors
    raise ValueError(
        f"{source} holds no state dict; tensors by name are needed, by themselves or under {side!r}, "
        "'state_dict' or 'model'"
    )
