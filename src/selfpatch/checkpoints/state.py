"""Exported files of an encoder: safetensors with the backbone's configuration in the header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from selfpatch.core.atomic_io import write_atomically
from selfpatch.models.encoder import BranchEncoder


def export_state(encoder: BranchEncoder) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and metadata of an exported file.

    The trunk's keys are timm's own, so that timm loads them without renaming; those of the pool begin with `pool.`.
    """
    state = {key.removeprefix("backbone.trunk."): tensor for key, tensor in encoder.state_dict().items()}
    return state, {"format": "pt", "shape": json.dumps(encoder.backbone.config.to_dict())}


def write_safetensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write tensors as safetensors, with `metadata` in the header; after an OSError the old file is as it was."""
    # safetensors refuses tensors that share memory.
    tensors = {key: x.detach().cpu().clone(memory_format=torch.contiguous_format) for key, x in state.items()}
    write_atomically(path, save(tensors, dict(metadata)))
    return path
