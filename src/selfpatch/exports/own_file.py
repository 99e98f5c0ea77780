"""The state dict with its shape, as run directories have it in exported/: selfpatch loads it, pool and all."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from selfpatch.exports.written import Features, Written, stored_size, write_safetensors
from selfpatch.nn.branch import BranchEncoder
from selfpatch.weights import export_state, load_encoder

FILE = "backbone.safetensors"


def write(encoder: BranchEncoder, folder: Path, size: int | None) -> Written:
    write_safetensors(folder / FILE, *export_state(encoder))
    side = stored_size(encoder.backbone.shape)
    usage = f'encoder = selfpatch.load("{{folder}}/{FILE}")'
    return Written(usage, sizes=((side, side),), notes=("Names of the trunk's tensors are timm's, `pool.` apart.",))


def read_features(folder: Path, images: Tensor) -> Features:
    encoder, _ = load_encoder(str(folder / FILE))
    return Features(encoder.image(images), encoder.patches(images))
