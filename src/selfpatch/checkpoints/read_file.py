"""Content of checkpoint files, unpickling nothing that could run code."""

import argparse
import io
import json
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from selfpatch.checkpoints.file_kinds import checkpoint_kind, small_json
from selfpatch.checkpoints.pickle_cost import has_costly_tuples
from selfpatch.checkpoints.sharded import is_sharded_checkpoint, read_sharded
from selfpatch.core.dry_run import in_dry_run
from selfpatch.core.safe_paths import path_below
from selfpatch.core.text import counted, one_line

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


def read_file(path: Path) -> tuple[Any, Mapping[str, str]]:
    """Return the content of a checkpoint file, and the metadata of a safetensors file.

    A dry run reads shapes alone. The content of an index are the tensors of all its shards.

    Raises:
        ValueError: the file is no checkpoint, is damaged, or unpickling it could run code.
    """
    if is_sharded_checkpoint(path):
        content = read_sharded(path)
        return {**content, "pretrainer": dict(content["pretrainer"])}, {}
    kind = checkpoint_kind(path)
    if kind == "safetensors":
        return _load_safetensors(path)
    return (_load_shards(path), {}) if kind == "index" else (_load_pickle(path), {})


def files_of(path: Path) -> tuple[Path, ...]:
    """Return a checkpoint file, or an index and its shards, which lie beside it, or the files of a folder of shards.

    Raises:
        ValueError: the index names no shard, one outside of its folder, or one that is missing.
    """
    if is_sharded_checkpoint(path):
        return tuple(sorted(path.iterdir()))
    if checkpoint_kind(path) != "index":
        return (path,)
    shards = shards_of(path)
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise ValueError(
            f"{path} is an index of {counted(len(shards), 'shard')}, and {missing[0]} is missing; download all of them "
            "beside it"
        )
    return path, *shards


def shards_of(index: Path) -> tuple[Path, ...]:
    """Return the paths of the shards that an index names, whether or not they are there.

    Raises:
        ValueError: the index names no shard, or one outside of its folder.
    """
    return tuple(index.parent / name for name in sorted(set(_weight_map(index).values())))


def _weight_map(path: Path) -> dict[str, str]:
    """Return the file of each tensor in an index."""
    weight_map = small_json(path)["weight_map"]
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path} is no checkpoint: it is an index of shards that names none; download it again")
    for name in weight_map.values():
        path_below(path.parent, name, path, nested=False)
    return weight_map


def _load_shards(path: Path) -> dict[str, Tensor]:
    weight_map = _weight_map(path)
    tensors: dict[str, Tensor] = {}
    for shard in files_of(path)[1:]:
        if checkpoint_kind(shard) == "index":
            raise ValueError(f"{path} names another index as a shard, {shard.name}; download the weights again")
        content, _ = read_file(shard)
        wanted = [key for key, name in weight_map.items() if name == shard.name]
        missing = [key for key in wanted if not isinstance(content, Mapping) or key not in content]
        if missing:
            raise ValueError(f"{shard} has no tensor {missing[0]!r}, which {path.name} names; download both again")
        tensors |= {key: content[key] for key in wanted}
    return tensors


def _load_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            read = partial(_empty, file) if in_dry_run() else file.get_tensor
            return {name: read(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except PermissionError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError) as error:
        reason = _missing_bytes(path) or f"it is not a readable safetensors file ({one_line(error)})"
        advice = "download or copy it again"
        raise ValueError(f"{path} is no checkpoint, or a damaged one: {reason}; {advice}") from None


def _missing_bytes(path: Path) -> str | None:
    """Return how many bytes of a safetensors file are there, if it is cut off."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
            whole = 8 + length + max(ends)
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError, IndexError):
            return None
    size = path.stat().st_size
    return f"it is cut off, with {size:,} of {whole:,} bytes" if whole > size else None


def _empty(file: Any, name: str) -> Tensor:
    """Return a tensor of a safetensors file without its values."""
    return torch.empty(file.get_slice(name).get_shape(), device="meta")


def _has_costly_tuples(path: Path) -> bool:
    """Return whether a pickle of the file makes tuples that take too long to hash."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
            return any(has_costly_tuples(io.BytesIO(archive.read(name))) for name in names)
    with path.open("rb") as file:  # magic number, protocol, system, content
        return any(has_costly_tuples(file) for _ in range(4))


def _load_pickle(path: Path) -> Any:
    try:
        costly = _has_costly_tuples(path)
    except PermissionError:
        raise
    except Exception:  # it is damaged, which the unpickler finds too
        costly = False
    if costly:
        raise ValueError(f"{path} is no checkpoint: it holds a huge nest of tuples; save the state dict of one network")
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
