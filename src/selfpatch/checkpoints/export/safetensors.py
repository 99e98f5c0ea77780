"""Exported files of an encoder: safetensors with the backbone's configuration, which selfpatch loads with its pool."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from selfpatch.checkpoints.export.formats import ExportSummary, OnHub, native_size
from selfpatch.checkpoints.load import load_encoder
from selfpatch.config.schema import Size
from selfpatch.core.atomic_io import write_atomically
from selfpatch.models.backbones.config import AnyBackboneConfig
from selfpatch.models.encoder import BranchEncoder, Features
from selfpatch.models.layers.lora import merge_adapter_tensors

LIBRARIES = ()
FILE = "backbone.safetensors"
USAGE = f'encoder = selfpatch.load("{{folder}}/{FILE}")'
ON_HUB = OnHub(
    "selfpatch",
    """import selfpatch

encoder = selfpatch.load("hf:{repository}")
image, patches = encoder(encoder.transform(pictures, size=224))""",
)


def write(encoder: BranchEncoder, folder: Path, size: Size | None) -> ExportSummary:
    """Write the file that run directories have in exported/; `size` is not used."""
    write_safetensors(folder / FILE, *export_state(encoder))
    side = native_size(encoder.backbone.config)
    return ExportSummary(USAGE, ((side, side),), ("Names of the trunk's tensors are timm's, `pool.` apart.",))


def export_state(encoder: BranchEncoder) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and metadata of an exported file.

    The trunk's keys are timm's, so that timm loads them without renaming; the pool's begin with `pool.`. Adapters are
    merged.
    """
    merged = merge_adapter_tensors(encoder.state_dict(), "the encoder")
    state = {key.removeprefix("backbone.trunk."): tensor for key, tensor in merged.items()}
    return state, metadata_of(encoder.backbone.config)


def metadata_of(config: AnyBackboneConfig) -> dict[str, str]:
    """Return the metadata from which `selfpatch` loads exactly this network; other libraries pass them over."""
    return {"format": "pt", "shape": json.dumps(config.to_dict())}


def write_safetensors(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """Write tensors as safetensors, with `metadata` in the header; after an OSError the old file is as it was."""
    # safetensors refuses tensors that share memory.
    tensors = {key: x.detach().cpu().clone(memory_format=torch.contiguous_format) for key, x in state.items()}
    write_atomically(path, save(tensors, dict(metadata)))
    return path


def read_features(folder: Path, images: Tensor) -> Features:
    """Return the features of images [B, C, H, W] after loading the file."""
    encoder, _ = load_encoder(str(folder / FILE))
    return encoder(images)
