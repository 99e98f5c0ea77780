"""Records and rules that all export formats share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from selfpatch.models.backbones.config import AnyBackboneConfig, ResNetConfig, ViTConfig


@dataclass(frozen=True)
class ExportSummary:
    """Description of the files that a format's `write` has put in its folder.

    Attributes:
        usage: lines of code that load them, with `{folder}` in place of the folder's name.
        sizes: (height, width) of images whose features have to agree.
        notes: sentences that the user has to know.
        has_image: whether the exported model's image feature is the trained network's.
    """

    usage: str
    sizes: tuple[tuple[int, int], ...]
    notes: tuple[str, ...] = ()
    has_image: bool = True


class Features(NamedTuple):
    """Features of images in another library."""

    image: Tensor | None
    """[B, D], or None if it gives no feature that compares."""
    patches: Tensor
    """[B, D, h, w]."""


POOL_IS_LEFT_OUT = (
    "Patch features are the trained network's. Its image feature was a pool's, which is not in this folder: "
    "--to onnx and --to safetensors keep it."
)


def native_size(config: AnyBackboneConfig) -> int:
    """Return the image side in pixels that fits a network: its grid of positions, or one window in the last stage."""
    if isinstance(config, ResNetConfig):
        return 2 * config.patch_size
    return config.patch_size * (config.grid if isinstance(config, ViTConfig) else config.window)
