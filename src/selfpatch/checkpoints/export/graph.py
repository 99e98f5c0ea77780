"""Graph of an encoder that ONNX and torch.export hold: normalised images [B, C, H, W] -> both features.

The graph includes the pool of training. It takes batches of any size, and images of two patches or more along each
side, whose positions it interpolates; a Swin's windows are laid out for one image size.
"""

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selfpatch.checkpoints.export.formats import native_size
from selfpatch.config.schema import Size, height_and_width
from selfpatch.core.text import counted
from selfpatch.models.backbones.config import SwinConfig
from selfpatch.models.debiased import Debiasing
from selfpatch.models.encoder import BranchEncoder, image_token
from selfpatch.ops.debias import remove_positions


@dataclass(frozen=True)
class Graph:
    """Module to trace, and the images that it takes."""

    module: nn.Module
    images: Tensor  # [2, C, H, W]
    """Example to trace the module with."""
    dynamic_shapes: dict[str, dict[int, Any]]
    """Dimensions of the images that are free, as `torch.export` takes them."""
    sizes: tuple[tuple[int, int], ...]
    """(height, width) of images whose features have to agree."""
    metadata: dict[str, str]
    """Normalisation, patch size, and the size of images if it is fixed."""
    note: str
    """Size of the images that the graph takes, as a sentence."""


def graph_of(encoder: BranchEncoder, size: Size | None, debias: int) -> Graph:
    """Return the graph of an encoder, whose patch features lack `debias` directions of positions.

    Args:
        encoder: the network.
        size: fixed side of the images in pixels, or (height, width); if None, any size that the family can take.
        debias: number of directions of positions to remove from patch features (fixed size only).

    Raises:
        ValueError: the patch size does not divide `size`, or features do not have `debias` directions.
    """
    config, p = encoder.backbone.config, encoder.patch_size
    height, width = height_and_width(native_size(config) if size is None else size)
    encoder.backbone.check_size(height, width)
    metadata = {"mean": json.dumps(config.mean), "std": json.dumps(config.std), "patch_size": str(p)}
    free: dict[int, Any] = {0: torch.export.Dim("batch")}
    sizes: tuple[tuple[int, int], ...] = ((height, width),)
    if size is not None or isinstance(config, SwinConfig):
        metadata["size"] = json.dumps(height if height == width else [height, width])
        note = f"Images have to be of {height} x {width} pixels, in batches of any size."
    else:
        free |= {2: p * torch.export.Dim("h", min=2), 3: p * torch.export.Dim("w", min=2)}
        sizes += ((height + p, width + 2 * p), (max(2, height // p // 2) * p, width))
        note = f"Batches may have any size; sides of images have to be multiples of {p}, from {2 * p} on."
    images, basis = torch.zeros(2, config.in_channels, height, width), None
    if debias:
        basis = patches_without_positions(encoder, debias).basis(images)
        metadata["debias"] = str(debias)
        note += f" Patch features lack {counted(debias, 'direction')} of positions, and have length 1."
    module = _FeatureGraph(encoder, basis).eval()
    return Graph(module, images, {"images": free}, sizes, metadata, note)


def patches_without_positions(encoder: BranchEncoder, debias: int) -> Debiasing:
    """Return the function of patch features [B, D, h, w] that a debiased graph computes."""
    backbone = encoder.backbone
    return Debiasing(lambda images: backbone(images).patches.movedim(-1, 1), debias, encoder.mean, encoder.std)


class _FeatureGraph(nn.Module):
    """The encoder as one pass for both features, without a branch on the size of images."""

    basis: Tensor | None

    def __init__(self, encoder: BranchEncoder, basis: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("basis", basis)
        self.backbone, self.pool = encoder.backbone, encoder.pool

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.backbone(images)
        patches = tokens.patches if self.basis is None else remove_positions(tokens.patches, self.basis)
        return image_token(tokens, self.pool), patches.movedim(-1, 1)
