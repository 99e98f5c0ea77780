"""Crops of several sizes as one sequence of tokens, so that each block runs once for all of them (DINOv2, DINOv3).

    x [T, D]           = all tokens of the first batch, image after image, then those of the next one
    norms, linear      : token by token, as if x were one long image
    attention          : within each image (`ops.attention.packed_attention`)
    rotary positions   : a table for all T tokens, from the grid of each batch
    stochastic depth   : a factor for each image, drawn in the order of separate passes

so that a pass of packed crops is the same as one pass for each size, up to rounding.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from selfpatch.core.dry_run import in_dry_run
from selfpatch.models.backbones.vit_block import Packed
from selfpatch.ops.attention import has_varlen_kernel, image_offsets
from selfpatch.ops.rope import Rotation


class Draws(NamedTuple):
    """Draws of one block for the images of one batch."""

    rotation: Rotation | None
    """Rotation [N, d] of the patches."""
    kept: tuple[Tensor | None, Tensor | None]
    """Factors [n] of both residual branches, None without stochastic depth."""


def draw_paths(block: nn.Module, images: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Draw the factors [images] of both residual branches of a block, as a pass of these images does."""
    first, second = (block.get_submodule(name) for name in ("drop_path1", "drop_path2"))
    return _factors(first, images, device), _factors(second, images, device)


def _factors(drop_path: nn.Module, images: int, device: torch.device) -> Tensor | None:
    if not (isinstance(drop_path, DropPath) and drop_path.training and drop_path.drop_prob):
        return None
    factors: Tensor = drop_path(torch.ones(images, device=device))
    return factors


class Packing:
    """Layout of batches of tokens [n, N, D], one for each size, as one sequence [T, D].

    Args:
        batches: the batches.
        heads: number of heads that attend to them.
    """

    def __init__(self, batches: Sequence[Tensor], heads: int) -> None:
        self.groups = tuple((batch.shape[0], batch.shape[1]) for batch in batches)
        first = batches[0]
        device, dtype = first.device, first.dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        # A dry run has no values, by which the FLOPs of that kernel are counted.
        fused = has_varlen_kernel(device, dtype, first.shape[-1] // heads) and not in_dry_run()
        self.offsets = image_offsets(self.groups, device) if fused else None

    def pack(self, batches: Sequence[Tensor]) -> Tensor:
        """Join tokens [n, N, ...] of each size to [T, ...]."""
        return torch.cat([batch.flatten(0, 1) for batch in batches])

    def unpack(self, x: Tensor) -> list[Tensor]:
        """Return the tokens [n, N, ...] of each size in x [T, ...]."""
        parts = x.split([images * tokens for images, tokens in self.groups])
        return [part.unflatten(0, size) for part, size in zip(parts, self.groups, strict=True)]

    def rotation(self, rotations: Sequence[Rotation | None]) -> Rotation | None:
        """Return the rotation [T, d] of all tokens, given that of each size; tokens before the patches stay."""
        tables = []
        for rotation, (images, tokens) in zip(rotations, self.groups, strict=True):
            if rotation is None:
                return None
            sin, cos = rotation
            before = (0, 0, tokens - len(sin), 0)
            tables.append([F.pad(sin, before).repeat(images, 1), F.pad(cos, before, value=1.0).repeat(images, 1)])
        sin, cos = (torch.cat(parts) for parts in zip(*tables, strict=True))
        return sin, cos

    def of_block(self, draws: Sequence[Draws]) -> Packed:
        """Return what a block needs to know, given what was drawn for each size."""
        kept1, kept2 = (self._by_token(factors) for factors in zip(*(d.kept for d in draws), strict=True))
        return Packed(self.groups, self.offsets, (kept1, kept2))

    def _by_token(self, factors: Sequence[Tensor | None]) -> Tensor | None:
        """Return the factor of each token [T, 1], given those of the images [n] of each size."""
        drawn = [x for x in factors if x is not None]
        if not drawn:
            return None
        sizes = zip(drawn, self.groups, strict=True)
        return torch.cat([x[:, None].expand(-1, tokens).flatten() for x, (_, tokens) in sizes])[:, None]
