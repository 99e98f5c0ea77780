"""The state dict with its shape, as run directories have it in exported/: selfpatch loads it, pool and all."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from selfpatch.checkpoints.export.formats import Features, Written, stored_size
from selfpatch.checkpoints.load import load_encoder
from selfpatch.checkpoints.state import export_state, write_safetensors
from selfpatch.models.encoder import BranchEncoder

FILE = "backbone.safetensors"


def write(encoder: BranchEncoder, folder: Path, size: int | None) -> Written:
    write_safetensors(folder / FILE, *export_state(encoder))
    side = stored_size(encoder.backbone.config)
    usage = f'encoder = selfpatch.load("{{folder}}/{FILE}")'
    return Written(usage, sizes=((side, side),), notes=("Names of the trunk's tensors are timm's, `pool.` apart.",))


def read_features(folder: Path, images: Tensor) -> Features:
    encoder, _ = load_encoder(str(folder / FILE))
    return Features(encoder.image(images), encoder.patches(images))
