"""Feature pyramids of a plain ViT: its maps at the strides of a convolutional network."""

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.layer_encoder import layer_at

LEVELS = 4
FINEST_STRIDE = 4
"""Stride of the finest level in pixels; each further level has twice the stride of the one before."""


QUARTERS, THIRDS = (1 / 4, 1 / 2, 3 / 4, 1.0), (1 / 3, 1 / 2, 2 / 3, 1.0)
"""Shares of the depth of a plain ViT at which pyramids take maps: blocks 3, 6, 9, 12 and 4, 6, 8, 12 of 12."""


def default_maps(backbone: Backbone, shares: Sequence[float]) -> tuple[int, ...]:
    """Return the numbers of four maps, counted from 1: a ViT's blocks at shares of its depth, or a network's stages.

    Raises:
        ValueError: there are not four stages.
    """
    count, family = len(backbone.map_dims), backbone.config.family
    if isinstance(backbone, ViT):
        return tuple(layer_at(share, count) for share in shares)
    if count != LEVELS:
        raise ValueError(f"a feature pyramid needs {LEVELS} stages; this {family} has {count}")
    return tuple(range(1, LEVELS + 1))


def doublings(patch_size: int) -> tuple[int, ...]:
    """Return how often the grid of patches is doubled for each level, so that strides are near 4, 8, 16 and 32.

    Negative numbers are halvings: (2, 1, 0, -1) for patch 16 and 14, (1, 0, -1, -2) for patch 8.
    """
    finest = round(math.log2(patch_size / FINEST_STRIDE))
    return tuple(finest - level for level in range(LEVELS))


class FourStrides(nn.Module):
    """Four maps of a plain ViT, all of one size, resampled to strides near 4, 8, 16 and 32.

    XCiT (arXiv 2106.09681), BEiT (arXiv 2106.08254) and iBOT do it so. Patch 16: deconvolution - norm - GELU -
    deconvolution; deconvolution; identity; max-pool. Patch 8: deconvolution; identity; max-pools by 2 and by 4. Where
    the patch is no power of two, the nearest one sets the strides.

    Attributes:
        strides: strides of the four levels in pixels, the finest first; 3.5, 7, 14 and 28 for patch 14.
        levels: modules that resample each map to its stride.
    """

    def __init__(self, dim: int, patch_size: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        times = doublings(patch_size)
        self.strides = tuple(patch_size / 2.0**count for count in times)
        self.levels = nn.ModuleList(rescaling(dim, count, norm) for count in times)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Rescale four maps [B, D, h, w], the finest first, to [B, D, h_i, w_i]."""
        return [level(x) for level, x in zip(self.levels, maps, strict=True)]


def rescaling(
    dim: int, doublings: int, norm: Callable[[int], nn.Module], *, dims: Sequence[int] | None = None
) -> nn.Module:
    """Return a module that rescales the sides of a map [B, dim, h, w] by 2^doublings; negative numbers are halvings.

    It enlarges by deconvolutions, with norm and GELU between them, or reduces by max-pooling. `dims` are the widths
    after each deconvolution; if None, all are `dim`. `norm` makes the norm of a width.
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
