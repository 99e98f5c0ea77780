"""Feature pyramids of any backbone: maps of four strides, and a fifth for proposals."""

import math
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from selfpatch.evaluation.feature_pyramid import (
    FINEST_STRIDE,
    LEVELS,
    THIRDS,
    FourStrides,
    default_maps,
    doublings,
    rescaling,
)
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.layers.batch_norm import BatchNorm2d

STAGE_STRIDES = tuple(float(FINEST_STRIDE << level) for level in range(LEVELS))
"""Strides of the stages of a Swin, a ResNet or a ConvNeXt."""


class Pyramid(nn.Module):
    """Base class of feature pyramids of a backbone: five maps of `width` channels, the finest first.

    `strides` of the maps are in pixels, fractions unless the patch size is a power of two; `multiple` divides image
    sides. The batch norms of a ResNet keep their statistics unless `train_batch_norms`.
    """

    def __init__(
        self, backbone: Backbone, strides: Sequence[float], width: int, *, train_batch_norms: bool = False
    ) -> None:
        super().__init__()
        self.backbone, self.width, self.train_batch_norms = backbone, width, train_batch_norms
        self.strides = (*strides, 2 * strides[-1])
        self.multiple = max(backbone.patch_size, round(strides[-1]))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps [B, width, H / stride, W / stride] of normalised images [B, C, H, W]."""
        maps = self.levels(images)
        return [*maps, maps[-1][:, :, ::2, ::2]]  # max-pooling of one pixel with stride 2 (arXiv 1612.03144)

    def levels(self, images: Tensor) -> list[Tensor]:
        """Return the first four maps."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> "Pyramid":
        """Set the mode of all parts, but of a ResNet's batch norms only if they are trained."""
        super().train(mode)
        for part in self.backbone.modules():
            if not self.train_batch_norms and getattr(part, "running_mean", None) is not None:
                part.eval()
        return self


class InnerMaps(Pyramid):
    """Four inner maps, rescaled to strides near 4, 8, 16 and 32, and a feature pyramid network: the 1x protocol.

    - ViT: blocks at a third, a half, two thirds and the end of the depth (4, 6, 8 and 12 of 12), rescaled with batch
      norms (XCiT, arXiv 2106.09681).
    - Swin, ConvNeXt: its stages, with a LayerNorm on each (arXiv 2103.14030, 2201.03545). ResNet: its stages.

    `blocks` of a ViT count from 1, the finest map's first; as above if None. `norm` follows each convolution of the
    feature pyramid network. Batch norms are over the global batch.

    Raises:
        ValueError: blocks are given for a backbone other than a ViT, or there are not four blocks or stages.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        width: int,
        blocks: Sequence[int] | None = None,
        norm: str = "none",
        train_batch_norms: bool = False,
    ) -> None:
        used = _blocks(backbone, blocks)
        rescale = FourStrides(backbone.dim, backbone.patch_size, BatchNorm2d) if isinstance(backbone, ViT) else None
        strides = rescale.strides if rescale else STAGE_STRIDES
        super().__init__(backbone, strides, width, train_batch_norms=train_batch_norms)
        dims = [backbone.map_dims[number - 1] for number in used]
        normed = backbone.config.maps_need_norm
        self.blocks = used
        self.norms = nn.ModuleList(nn.LayerNorm(dim) if normed else nn.Identity() for dim in dims)
        self.rescale = rescale
        self.merge = FeaturePyramidNetwork(dims, width, norm_layer=NORMS[norm])

    def levels(self, images: Tensor) -> list[Tensor]:
        """Return the four merged maps."""
        maps = self.backbone.maps(images, self.blocks)
        channels_first = [norm(m).movedim(-1, 1) for m, norm in zip(maps, self.norms, strict=True)]
        rescaled = channels_first if self.rescale is None else self.rescale(channels_first)
        return list(self.merge({str(level): m for level, m in enumerate(rescaled)}).values())


class LastMap(Pyramid):
    """ViTDet's simple feature pyramid (arXiv 2203.16527, section 3): all levels from the last map of a ViT.

    Each deconvolution halves the width; norms are LayerNorms; there is no top-down pathway.

    Raises:
        ValueError: the backbone is not a ViT.
    """

    def __init__(self, backbone: Backbone, *, width: int) -> None:
        if not isinstance(backbone, ViT):
            raise ValueError(
                f"the simple feature pyramid is for a plain ViT; for a {backbone.config.family} use pyramid inner-maps"
            )
        factors = doublings(backbone.patch_size)
        super().__init__(backbone, [backbone.patch_size / 2.0**factor for factor in factors], width)
        dim = backbone.dim
        self.resize = nn.ModuleList()
        for factor in factors:
            dims = [dim // 2**step for step in range(1, factor + 1)]
            last = dims[-1] if dims else dim
            smooth = [nn.Conv2d(last, width, 1, bias=False), ChannelNorm(width)]
            smooth += [nn.Conv2d(width, width, 3, padding=1, bias=False), ChannelNorm(width)]
            self.resize.append(nn.Sequential(rescaling(dim, factor, ChannelNorm, dims=dims), *smooth))

    def levels(self, images: Tensor) -> list[Tensor]:
        """Return the last map at four strides."""
        (last,) = self.backbone.maps(images, [self.backbone.num_layers])
        return [resize(last.movedim(-1, 1)) for resize in self.resize]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised map."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


NORMS: Mapping[str, Callable[[int], nn.Module] | None] = {"none": None, "layer": ChannelNorm, "batch": BatchNorm2d}
"""Norms after the convolutions of a pyramid or a head, by the name that settings use."""


def _blocks(backbone: Backbone, blocks: Sequence[int] | None) -> tuple[int, ...]:
    """Return the four blocks or stages whose maps are used, counted from 1."""
    if blocks is None:
        return default_maps(backbone, THIRDS)
    count, family = len(backbone.map_dims), backbone.config.family
    if not isinstance(backbone, ViT):
        raise ValueError(f"blocks are for a plain ViT; a {family} gives its stages, leave blocks out")
    if len(blocks) != LEVELS or not all(1 <= block <= count for block in blocks):
        raise ValueError(f"blocks are {list(blocks)}; give {LEVELS} of 1 to {count}, the finest map's first")
    return tuple(blocks)


def padded(images: Sequence[Tensor], multiple: int, smallest: Sequence[int] = (0, 0)) -> Tensor:
    """Return a batch [B, C, H', W'] of images [C, H, W] of any sizes, with zeros to the right and below.

    Its sides are multiples of `multiple`, and at least those of `smallest`, height and width.
    """
    sides = [max(side, *(image.shape[axis] for image in images)) for axis, side in enumerate(smallest, start=1)]
    height, width = (math.ceil(side / multiple) * multiple for side in sides)
    batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch
