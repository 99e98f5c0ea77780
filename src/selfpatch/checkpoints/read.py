"""Weights from run directories, checkpoint files, folders of Hugging Face, safetensors and timm."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from selfpatch.checkpoints.architecture import check_architecture
from selfpatch.checkpoints.config import DEFAULTS, LoadConfig, Side
from selfpatch.checkpoints.folders import described, weights_file
from selfpatch.checkpoints.infer_config import infer_backbone_config
from selfpatch.checkpoints.key_mapping import known_num_heads, map_keys
from selfpatch.checkpoints.read_file import files_of, read_file
from selfpatch.checkpoints.state_dict import check_size, find_state_dict
from selfpatch.core.dry_run import in_dry_run
from selfpatch.core.text import one_line
from selfpatch.models.backbones.build import build_timm
from selfpatch.models.backbones.config import AnyBackboneConfig, ViTConfig, backbone_config_from_dict

TIMM = "timm:"


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
    is_own: bool = False
    """True for checkpoints and exports of this package, whose parts are all known."""


def read_weights(source: str, config: LoadConfig = DEFAULTS) -> Weights:
    """Read weights; the format is inferred from the keys. A dry run reads the shapes alone, and fetches nothing.

    Args:
        source: a run directory, a checkpoint file of a method in `key_mapping` (full or backbone only), a .safetensors
            file, an index of shards, a folder that `selfpatch export`, transformers or timm wrote, or timm:NAME.
        config: which network is read; a file that holds only one gives that one.

    Raises:
        ValueError: there is no such file, it is no checkpoint or a damaged one, it holds no ViT, Swin or ResNet, or
            unpickling it could run code.
    """
    if source.startswith(TIMM):
        if config.num_heads is not None:
            raise ValueError(f"num_heads is {config.num_heads}, but {source} has its own; leave it out")
        backbone = build_timm(source.removeprefix(TIMM), pretrained=not in_dry_run())
        weights = Weights({f"backbone.{k}": v for k, v in backbone.state_dict().items()}, backbone.config, source, None)
    elif os.path.exists(source):  # unlike Path.exists, False for names that no file can have
        weights = replace(_read_path(Path(source), config.side), source=source)
    else:
        raise ValueError(
            f"no weights at {source!r}; use a run directory, a checkpoint file, a .safetensors file or {TIMM}NAME"
        )
    found = weights.config
    if not isinstance(found, ViTConfig):
        if config.num_heads is not None:
            raise ValueError(f"num_heads is {config.num_heads}, but {source} is no ViT; leave it out")
        return _checked(weights)
    num_heads = config.num_heads or found.num_heads
    if found.embed_dim % num_heads:
        raise ValueError(
            f"{source}: width {found.embed_dim} cannot be split into {num_heads} heads; give another --num-heads"
        )
    positions = config.position_embedding or found.position_embedding
    return _checked(replace(weights, config=replace(found, num_heads=num_heads, position_embedding=positions)))


def _checked(weights: Weights) -> Weights:
    """Return weights whose tensors are those of the network that they describe; timm's have been loaded into it."""
    if not weights.source.startswith(TIMM):
        check_architecture(weights.config, weights.state, weights.source)
    return weights


def _read_path(given: Path, side: Side) -> Weights:
    path = weights_file(given)
    source, files = str(path), files_of(path)
    content, metadata = read_file(path)
    of_run = isinstance(content, Mapping) and {"pretrainer", "shape"} <= content.keys()
    tensors = find_state_dict({"state_dict": content["pretrainer"]} if of_run else content, side, source)
    check_size(tensors, sum(file.stat().st_size for file in files), source)
    left_out: tuple[str, ...] = ()
    if of_run:
        state = {k.removeprefix(f"{side}."): v for k, v in tensors.items() if k.startswith(f"{side}.")}
        shape = content["shape"]
    else:
        state, left_out = _mapped(tensors, side, source)
        shape = _own_shape(metadata)
    is_own = of_run or shape is not None
    if is_own:
        config = _own_config(shape, source)
    else:
        config = infer_backbone_config(state, source)
        if isinstance(config, ViTConfig):
            config = replace(config, num_heads=known_num_heads(tensors, config.embed_dim) or config.num_heads)
        if given.is_dir() or len(files) > 1:
            config = described(config, path.parent)
    return Weights(state, config, source, None if in_dry_run() else file_sha256(*files), left_out, is_own)


def file_sha256(*paths: Path) -> str:
    """Return the hash of the content of a file, or of several one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def _mapped(tensors: Mapping[str, Tensor], side: Side, source: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    try:
        return map_keys(tensors, side, source)
    except (RuntimeError, IndexError) as error:  # parts of one tensor that cannot be joined
        raise ValueError(
            f"{source} has tensors of other shapes than its format ({one_line(error)}); download it again"
        ) from None


def _own_config(shape: Any, source: str) -> AnyBackboneConfig:
    try:
        return backbone_config_from_dict(shape)
    except ValueError as error:
        raise ValueError(f"{source} does not describe its network as it should: {one_line(error, 300)}") from None


def _own_shape(metadata: Mapping[str, str]) -> Any:
    """Return the description of the network that an export has, or None; others may mean something else by `shape`."""
    try:
        shape = json.loads(metadata.get("shape", "null"))
    except (ValueError, RecursionError):
        return None
    known = isinstance(shape, dict) and ("family" in shape or {"embed_dim", "depth"} <= shape.keys())
    return shape if known else None
