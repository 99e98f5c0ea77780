"""Weights from run directories, checkpoint files, folders of Hugging Face, safetensors and timm."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selfpatch.checkpoints.architecture import CANNOT_BE_BUILT, check_architecture
from selfpatch.checkpoints.config import DEFAULTS, LoadConfig, Side
from selfpatch.checkpoints.folders import FILES, described, timm_architecture, weights_file
from selfpatch.checkpoints.hub import hub_folder
from selfpatch.checkpoints.infer_config import infer_backbone_config
from selfpatch.checkpoints.key_mapping import TRUNK, known_num_heads, map_keys
from selfpatch.checkpoints.names import HUB, TIMM, require_weights
from selfpatch.checkpoints.read_file import files_of, read_file
from selfpatch.checkpoints.state_dict import MAX_REPEATS, check_size, find_state_dict
from selfpatch.core.dry_run import in_dry_run
from selfpatch.core.text import one_line
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.build import build_timm, has_timms_keys
from selfpatch.models.backbones.config import AnyBackboneConfig, ViTConfig, backbone_config_from_dict
from selfpatch.models.layers.lora import merge_adapter_tensors


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
    """Read weights; the format is inferred from the keys.

    A dry run reads the shapes alone. It fetches nothing of timm's, and of the Hub what is not in the cache.

    Args:
        source: a run directory, a checkpoint file of a method in `key_mapping` (full or backbone only), a .safetensors
            file, an index of shards, a folder that `selfpatch export`, transformers or timm wrote, timm:NAME, or
            hf:OWNER/NAME, a repository of the Hugging Face Hub that holds such a folder.
        config: which network is read; a file that holds only one gives that one.

    Raises:
        ValueError: there is no such file, it is no checkpoint or a damaged one, it holds no ViT, Swin, ResNet or
            ConvNeXt, or unpickling it could run code.
    """
    require_weights(source)
    if source.startswith(TIMM):
        backbone = build_timm(source.removeprefix(TIMM), pretrained=not in_dry_run())
        weights = Weights({f"backbone.{k}": v for k, v in backbone.state_dict().items()}, backbone.config, source, None)
    elif source.startswith(HUB):
        weights = replace(_read_path(hub_folder(source), config.side), source=source)
    else:
        weights = replace(_read_path(Path(source), config.side), source=source)
    found = weights.config
    if found.timm_model is not None and config.num_heads is not None:
        raise ValueError(f"num_heads is {config.num_heads}, but {source} has its own; leave it out")
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
    # The same file may be named instead of its folder, of which config.json tells what no tensor does.
    folder = path.parent if given.is_dir() or len(files) > 1 or path.name in FILES else None
    of_run = isinstance(content, Mapping) and {"pretrainer", "shape"} <= content.keys()
    tensors = find_state_dict({"state_dict": content["pretrainer"]} if of_run else content, side, source)
    check_size(tensors, sum(file.stat().st_size for file in files), source)
    sha256 = None if in_dry_run() else file_sha256(*files)
    name = None if folder is None or _own_shape(metadata) is not None else timm_architecture(folder)
    if folder is not None and name is not None and _has_variants_alike(name, tensors):
        backbone = _timm_backbone(name, tensors, source)
        of_timm = {f"backbone.{key}": tensor for key, tensor in backbone.state_dict().items()}
        return Weights(of_timm, described(backbone.config, folder), source, sha256)
    left_out: tuple[str, ...] = ()
    shape = content["shape"] if of_run else _own_shape(metadata)
    config = None if shape is None else _own_config(shape, source)
    if of_run:
        state = {k.removeprefix(f"{side}."): v for k, v in tensors.items() if k.startswith(f"{side}.")}
        state = merge_adapter_tensors(state, source)
    elif config is not None and config.timm_model is not None:
        state, left_out = _exported_timm(tensors, config, side, source)
    else:
        state, left_out = _mapped(tensors, side, source)
    is_own = config is not None
    if config is None:
        config = infer_backbone_config(state, source)
        if isinstance(config, ViTConfig):
            config = replace(config, num_heads=known_num_heads(tensors, config.embed_dim) or config.num_heads)
        if folder is not None:
            config = described(config, folder)
    return Weights(state, config, source, sha256, left_out, is_own)


def _has_variants_alike(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether timm's model has variants of the same shapes: ViTs, and ResNets that blur or average strides."""
    return any(key.startswith("blocks.") for key in tensors) or name.startswith(("resnetaa", "resnetblur"))


def _timm_backbone(name: str, tensors: Mapping[str, Tensor], source: str) -> Backbone:
    """Return the timm model whose tensors a file holds, as timm loads them; without values in a dry run."""
    first = tensors.get("patch_embed.proj.weight", tensors.get("conv1.weight"))
    channels = 3 if first is None or first.ndim != 4 else first.shape[1]
    with torch.device("meta"):
        described_size = sum(x.numel() for x in build_timm(name, in_channels=channels).state_dict().values())
    if described_size > MAX_REPEATS * sum(tensor.numel() for tensor in tensors.values()):
        raise ValueError(f"{source} is of another architecture than its config.json names, {name}; download both again")
    return build_timm(name, state=None if in_dry_run() else tensors, in_channels=channels)


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


def _exported_timm(
    tensors: Mapping[str, Tensor], config: AnyBackboneConfig, side: Side, source: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the state of an exported network of timm's; those that average have their final norm elsewhere in timm."""
    try:
        keep = has_timms_keys(config)
    except CANNOT_BE_BUILT:
        keep = False  # check_architecture tells what is wrong
    if not keep:
        return _mapped(tensors, side, source)
    ours = ("pool.", "heads.", "backbone.")
    renamed = {re.sub(r"^fc_norm\.", "norm.", key): tensor for key, tensor in tensors.items()}
    return {key if key.startswith(ours) else TRUNK + key: tensor for key, tensor in renamed.items()}, ()


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
