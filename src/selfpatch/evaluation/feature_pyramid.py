"""The maps of a plain ViT, which all have the stride of a patch, at the strides of a convolutional network."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

LEVELS = 4
FINEST_STRIDE = 4
"""Pixels; each of the further levels has twice the stride of the one before."""


def doublings(patch_size: int) -> tuple[int, ...]:
    """How often the grid of patches is doubled for each of the levels, so that strides are near 4, 8, 16 and 32;
    negative: halved. Patch 16 and 14: (2, 1, 0, -1); patch 8: (1, 0, -1, -2)."""
    finest = round(math.log2(patch_size / FINEST_STRIDE))
    return tuple(finest - level for level in range(LEVELS))


class FourStrides(nn.Module):
    """Four maps of a plain ViT, all of one size, brought to strides near 4, 8, 16 and 32, as XCiT (arXiv 2106.09681),
    BEiT (arXiv 2106.08254) and iBOT do it.

    Patch 16: deconvolution - norm - GELU - deconvolution, deconvolution, as it is, max-pool. Patch 8: deconvolution, as
    it is, max-pools by 2 and by 4. Where the patch is no power of two, strides are those of the nearest one.

    Args:
        dim: width D of the maps.
        patch_size: side in pixels of what a token stands for.
        norm: between two deconvolutions: width -> module.

    Attributes:
        strides: of the four levels, the finest first; 3.5, 7, 14 and 28 for patch 14.
        levels: what brings each map to its stride.
    """

    def __init__(self, dim: int, patch_size: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        times = doublings(patch_size)
        self.strides = tuple(patch_size / 2.0**count for count in times)
        self.levels = nn.ModuleList(rescaling(dim, count, norm) for count in times)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """[B, D, h, w] each, the finest first -> [B, D, h_i, w_i]."""
        return [level(x) for level, x in zip(self.levels, maps, strict=True)]


def rescaling(
    dim: int, doublings: int, norm: Callable[[int], nn.Module], *, dims: Sequence[int] | None = None
) -> nn.Module:
    """[B, dim, h, w] -> 2^doublings times its sides: how the maps of a plain ViT come to other strides.

    A map is enlarged deconvolution by deconvolution, with norm and GELU between them, or reduced by a maximum.

    Args:
        doublings: of the sides; negative: halvings.
        norm: width -> module.
        dims: widths after each deconvolution; None: all as before.
    """
    if doublings == 0:
        return nn.Identity()
    if doublings < 0:  # rounded up, so that a map of one patch stays one
        return nn.MaxPool2d(2**-doublings, ceil_mode=True)
    layers: list[nn.Module] = []
    for after in [dim] * doublings if dims is None else dims:
        if layers:
            layers += [norm(dim), nn.GELU()]
        layers.append(nn.ConvTranspose2d(dim, after, 2, stride=2))
        dim = after
    return nn.Sequential(*layers)
