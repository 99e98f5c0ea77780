"""Dense features of whole images, and where in the image each one belongs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.types import Encoder
from selfpatch.data.augment.pillow import resize_picture, to_tensor
from selfpatch.data.decode.pillow import Picture
from selfpatch.evaluation.correspondence.config import Matching
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.encoder import BranchEncoder
from selfpatch.ops.images import normalise

Size = tuple[int, int]
"""(width, height)"""


@dataclass(frozen=True)
class FeatureMap:
    """Features of one image.

    Attributes:
        features: [h, w, D], of unit length.
        first: pixels from the corner of the resized image to the centre of what the first feature sees.
        step: pixels between the centres, along both axes.
        resized: size of the image that was encoded.
        original: size of the image itself, in whose pixels keypoints are given.
    """

    features: Tensor
    first: float
    step: float
    resized: Size
    original: Size

    def cells(self, points: Tensor) -> Tensor:
        """Keypoints [K, 2] (x, y) -> places on the map, (0, 0) being the first feature. A pixel's centre lies half a
        pixel from its corner, before and after resizing."""
        return ((points + 0.5) * self._scale(points) - self.first) / self.step

    def points(self, cells: Tensor) -> Tensor:
        """The inverse of `cells`."""
        return (cells * self.step + self.first) / self._scale(cells) - 0.5

    def _scale(self, like: Tensor) -> Tensor:
        return like.new_tensor(self.resized) / like.new_tensor(self.original)

    def at(self, points: Tensor, sampling: Literal["bilinear", "nearest"]) -> Tensor:
        """The features [K, D] at keypoints [K, 2]; beyond the outermost centres those of the border."""
        height, width, _ = self.features.shape
        x, y = self.cells(points.double()).unbind(1)  # on the CPU: not every device has float64
        x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
        if sampling == "nearest":
            return self.features[y.round().long(), x.round().long()]
        left, top = x.floor().long(), y.floor().long()
        right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
        across, down = (share[:, None].to(self.features) for share in (x - left, y - top))
        upper = torch.lerp(self.features[top, left], self.features[top, right], across)
        lower = torch.lerp(self.features[bottom, left], self.features[bottom, right], across)
        return torch.lerp(upper, lower, down)

    def cosines(self, features: Tensor) -> Tensor:
        """Features [K, D] of unit length -> [K, h, w] with those of the map."""
        return torch.einsum("kd,hwd->khw", features, self.features)

    def pixel_cosines(self, features: Tensor) -> Tensor:
        """Features [K, D] of unit length -> [K, H, W] with those of the map enlarged bilinearly to the image's own
        pixels. What is enlarged are the cosines, a product with each feature being linear; only the length of an
        enlarged feature, which lies between others, is needed beside them."""
        rows, columns = self._enlarging
        return torch.einsum("yh,khw,xw->kyx", rows, self.cosines(features), columns) / self._lengths

    @cached_property
    def _enlarging(self) -> tuple[Tensor, Tensor]:
        """What each row and column of pixels takes of the map's, [H, h] and [W, w]; beyond the outermost centres of the
        border alone."""
        pixels = torch.arange(max(self.original), dtype=torch.float64)
        x, y = self.cells(pixels[:, None].expand(-1, 2)).unbind(1)
        (width, height), (h, w, _) = self.original, self.features.shape
        return _between(y[:height], h).to(self.features), _between(x[:width], w).to(self.features)

    @cached_property
    def _lengths(self) -> Tensor:
        """Of the enlarged features, [H, W]; a row at a time, for all of them at once would be large."""
        rows, columns = self._enlarging
        lengths = [(columns @ torch.einsum("h,hwd->wd", row, self.features)).norm(dim=1) for row in rows]
        return torch.stack(lengths).clamp(min=1e-12)


@dataclass(frozen=True)
class DenseEncoder:
    """Pictures into feature maps, as `matching` says.

    Raises:
        ValueError: the encoder has no such block, facet or stride.
    """

    encoder: Encoder
    matching: Matching

    def __post_init__(self) -> None:
        m, patch = self.matching, self.encoder.patch_size
        if m.facet != "token" and not isinstance(self._backbone, ViT):
            raise ValueError(f"facet {m.facet!r} is asked for, but only a ViT has keys, queries and values; use token")
        if self.block is not None:
            if self._backbone is None:
                raise ValueError(f"block {self.block} is asked for, but a {type(self.encoder).__name__} shows none")
            count = len(self._backbone.map_dims)
            if not 1 <= self.block <= count:
                raise ValueError(f"block {self.block} is asked for, but the network has 1 to {count}")
        if m.stride is not None and (m.stride < 1 or patch % m.stride):
            raise ValueError(f"stride {m.stride} does not divide the patch size {patch}; use e.g. {_half(patch)}")

    @property
    def _backbone(self) -> Backbone | None:
        return self.encoder.backbone if isinstance(self.encoder, BranchEncoder) else None

    @property
    def block(self) -> int | None:
        """Counted from 1; None: the encoder's own features, or the last block of a facet."""
        if self.matching.block is not None or self.matching.depth is None or self._backbone is None:
            return self.matching.block
        return max(1, round(self.matching.depth * len(self._backbone.map_dims)))

    @torch.no_grad()
    def __call__(self, picture: Picture) -> FeatureMap:
        size = network_size(picture.size, self.matching, self.encoder.patch_size)
        pixels = to_tensor(resize_picture(picture, *size))[None].to(self.encoder.device)
        image = normalise(pixels, self.encoder.mean, self.encoder.std)
        features, step = self._dense(image)
        side = self.encoder.patch_size if self._is_strided else step
        return FeatureMap(F.normalize(features, dim=-1), side / 2, step, size, picture.size)

    @property
    def _is_strided(self) -> bool:
        return self.matching.stride not in (None, self.encoder.patch_size)

    def _dense(self, image: Tensor) -> tuple[Tensor, float]:
        """[h, w, D] and the pixels between two centres."""
        plain = self._features(image)
        side = image.shape[-1] / plain.shape[1]
        if not self._is_strided:
            return plain, side
        if side != self.encoder.patch_size:
            raise ValueError(
                f"block {self.block} has a feature for {side:g} pixels, not for a patch of {self.encoder.patch_size}; "
                "leave out the stride"
            )
        assert self.matching.stride is not None
        return self._interleaved(image, plain, self.matching.stride), self.matching.stride

    def _interleaved(self, image: Tensor, plain: Tensor, stride: int) -> Tensor:
        """Features of every patch whose corner lies on a multiple of the stride: the image is encoded from each corner
        within the first patch on, one patch shorter where it does not begin at the border, and the maps are dealt out.
        Any encoder can do this, and a feature is just what the encoder makes of an image that begins there."""
        patch = self.encoder.patch_size
        height, width = image.shape[-2:]
        dense = plain.new_empty((height - patch) // stride + 1, (width - patch) // stride + 1, plain.shape[-1])
        every = patch // stride
        for down in range(every if height > patch else 1):
            for right in range(every if width > patch else 1):
                top, left = down * stride, right * stride
                bottom, far = (top + height - patch if top else height), (left + width - patch if left else width)
                part = image[..., top:bottom, left:far]
                dense[down::every, right::every] = plain if not (top or left) else self._features(part)
        return dense

    def _features(self, image: Tensor) -> Tensor:
        """[1, C, H, W] -> [h, w, D] float32."""
        facet, block, backbone = self.matching.facet, self.block, self._backbone
        if facet != "token":
            assert isinstance(backbone, ViT)
            return backbone.facet(image, facet, -1 if block is None else block - 1)[0].float()
        if block is not None:
            assert backbone is not None
            return backbone.maps(image, [block])[0][0].float()
        return self.encoder.patches(image)[0].movedim(0, -1).float()


def network_size(size: Size, matching: Matching, patch_size: int) -> Size:
    """What an image is resized to: whole patches, at least one."""
    longer = max(size)
    sides = (longer, longer) if matching.shape == "square" else size
    width, height = (max(1, round(side * matching.resolution / longer / patch_size)) * patch_size for side in sides)
    return width, height


def _between(cells: Tensor, count: int) -> Tensor:
    """Bilinear weights [n, count] of places [n] on an axis of `count` centres."""
    centres = torch.arange(count, dtype=cells.dtype)
    return (1 - (cells.clamp(0, count - 1)[:, None] - centres).abs()).clamp(min=0)


def _half(patch_size: int) -> int:
    return patch_size // 2 if patch_size % 2 == 0 else patch_size
