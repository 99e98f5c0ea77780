"""What the formats have in common: what was written, what the other library makes of it, and plain safetensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from selfpatch.models.backbones.config import AnyBackboneConfig, ResNetConfig, ViTConfig


@dataclass(frozen=True)
class Written:
    """What a format's `write` has put in its folder.

    Attributes:
        usage: lines of code that load it, with `{folder}` where the folder's name goes.
        sizes: (height, width) of images whose features have to agree.
        notes: sentences on what the user has to know.
        has_image: whether the exported model's image feature is the trained network's.
    """

    usage: str
    sizes: tuple[tuple[int, int], ...]
    notes: tuple[str, ...] = ()
    has_image: bool = True


class Features(NamedTuple):
    """What another library makes of images."""

    image: Tensor | None
    """[B, D]; None where it makes none that compares."""
    patches: Tensor
    """[B, D, h, w]."""


POOL_IS_LEFT_OUT = (
    "Patch features are the trained network's. Its image feature was a pool's, which is not in this folder: "
    "--to onnx and --to safetensors keep it."
)


def stored_size(shape: AnyBackboneConfig) -> int:
    """Side of the images that a network is at home with: its grid of positions, or one window in the last stage."""
    if isinstance(shape, ResNetConfig):
        return 2 * shape.patch_size
    return shape.patch_size * (shape.grid if isinstance(shape, ViTConfig) else shape.window)
