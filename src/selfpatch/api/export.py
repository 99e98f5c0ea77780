"""Export a network for other libraries."""

from pathlib import Path
from typing import Any

from selfpatch.checkpoints.config import LoadConfig
from selfpatch.checkpoints.export.export import export as export_encoder
from selfpatch.checkpoints.load import load_encoder
from selfpatch.config.schema import Size
from selfpatch.core.console import console
from selfpatch.models.encoder import BranchEncoder


def export(
    weights: str | Path | BranchEncoder,
    to: str,
    out: str | Path,
    *,
    size: Size | None = None,
    debias: int = 0,
    **load_options: Any,
) -> list[Path]:
    """Write a network for another library, or as one safetensors file, and check it by loading it there.

    Args:
        weights: an encoder, or weights as `selfpatch.load` takes them, without baselines and `untrained:`.
        to: timm, safetensors, hf (transformers), onnx or torch (torch.export).
        out: folder for the files, new or empty. Its README.txt explains how to load them.
        size: side of the images in pixels, or (height, width) (onnx and torch only); the graph then takes no others.
        debias: number of directions of positions to remove from patch features (onnx and torch of a fixed size only).
        load_options: fields of `checkpoints.config.LoadConfig`, e.g. `side="student"`.

    Raises:
        ValueError: weights cannot be read, or the format has no such network.
    """
    if isinstance(weights, str | Path):
        weights, report = load_encoder(str(weights), LoadConfig(**load_options))
        console.say(str(report))
    return export_encoder(weights, to, out, size=size, debias=debias)
