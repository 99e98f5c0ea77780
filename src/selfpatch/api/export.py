"""Export a network for other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from selfpatch.api.pretrain import console
from selfpatch.checkpoints.config import LoadConfig
from selfpatch.checkpoints.export.export import export as export_encoder
from selfpatch.checkpoints.load import load_encoder
from selfpatch.models.encoder import BranchEncoder


def export(
    weights: str | BranchEncoder, to: str, out: str | Path, *, size: int | None = None, **options: Any
) -> list[Path]:
    """Writes a network as timm, transformers or onnxruntime load it, or as one file of ours, checked by loading it.

    Args:
        weights: as `load` takes them, but for baselines and `untrained:`; or an encoder.
        to: timm, safetensors, hf or onnx.
        out: a folder that is new or empty.
        size: of the images, for onnx, which then takes no others.
        options: fields of `LoadConfig`.

    Returns:
        The files; README.txt, the last, says how to load them and where features agree.

    Raises:
        ValueError: weights cannot be read, or the format has no such network.
    """
    if isinstance(weights, str):
        weights, report = load_encoder(weights, LoadConfig(**options))
        console.print(str(report), highlight=False, soft_wrap=True)
    return export_encoder(weights, to, out, size=size)
