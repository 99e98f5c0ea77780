"""Export of the state dict with the backbone's configuration, which selfpatch loads with its pool."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from selfpatch.checkpoints.export.formats import ExportSummary, Features, native_size
from selfpatch.checkpoints.load import load_encoder
from selfpatch.checkpoints.state import export_state, write_safetensors
from selfpatch.models.encoder import BranchEncoder

LIBRARIES = ()
FILE = "backbone.safetensors"
USAGE = f'encoder = selfpatch.load("{{folder}}/{FILE}")'


def write(encoder: BranchEncoder, folder: Path, size: int | None) -> ExportSummary:
    """Write the file that run directories have in exported/; `size` is not used."""
    write_safetensors(folder / FILE, *export_state(encoder))
    side = native_size(encoder.backbone.config)
    return ExportSummary(USAGE, ((side, side),), ("Names of the trunk's tensors are timm's, `pool.` apart.",))


def read_features(folder: Path, images: Tensor) -> Features:
    """Return the features of images [B, C, H, W] after loading the file."""
    encoder, _ = load_encoder(str(folder / FILE))
    return Features(encoder.image(images), encoder.patches(images))
