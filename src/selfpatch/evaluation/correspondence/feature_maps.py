"""Dense features of whole images, and the positions in the image that they belong to."""

from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.types import Encoder
from selfpatch.data.augment.pillow import resize_picture, to_tensor
from selfpatch.data.decode.opening import check_resized
from selfpatch.data.decode.pillow import Picture
from selfpatch.evaluation.correspondence.config import CorrespondenceConfig, Sampling
from selfpatch.evaluation.encoders import dense_encoder
from selfpatch.evaluation.feature_cache import cached
from selfpatch.models.layer_encoder import LayerEncoder
from selfpatch.ops.images import normalise

Size = tuple[int, int]
"""(width, height)"""


@dataclass(frozen=True)
class FeatureMap:
    """Features of one image."""

    features: Tensor
    """Features [h, w, D], of unit length unless they are raw."""
    first: float
    """Pixels from the corner of the resized image to the centre of the first feature's patch."""
    step: float
    """Pixels between neighbouring centres, along both axes."""
    resized: Size
    """Size of the image that was encoded."""
    original: Size
    """Size of the image itself, in whose pixels keypoints are given, with what it is padded by."""
    raw: bool = False
    """True if features have the encoder's length."""
    corner: bool = False
    """True if positions are those of Probe3D, see `cells` and `points`."""

    def cells(self, points: Tensor) -> Tensor:
        """Return the coordinates of keypoints [K, 2] (x, y) on the map, (0, 0) being the first feature.

        A pixel's centre lies half a pixel from its corner, before and after resizing. With `corner`, 0 is at the left
        border of the image and w - 1 at its right one.
        """
        if self.corner:
            return points / points.new_tensor(self.original) * (self._count(points) - 1)
        return ((points + 0.5) * self._scale(points) - self.first) / self.step

    def points(self, cells: Tensor) -> Tensor:
        """Return the keypoints of coordinates on the map: the inverse of `cells`; with `corner`, corners of patches."""
        if self.corner:
            return cells / self._count(cells) * cells.new_tensor(self.original)
        return (cells * self.step + self.first) / self._scale(cells) - 0.5

    def _count(self, like: Tensor) -> Tensor:
        height, width, _ = self.features.shape
        return like.new_tensor((width, height))

    def _scale(self, like: Tensor) -> Tensor:
        return like.new_tensor(self.resized) / like.new_tensor(self.original)

    def at(self, points: Tensor, sampling: Sampling) -> Tensor:
        """Return the features [K, D] at keypoints [K, 2]; the border's beyond the outermost centres."""
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
        """Return the cosines [K, h, w] between unit features [K, D] and the map."""
        products = self._products(features)
        return products / self.features.norm(dim=-1).clamp(min=1e-12) if self.raw else products

    def _products(self, features: Tensor) -> Tensor:
        return torch.einsum("kd,hwd->khw", features, self.features)

    def pixel_cosines(self, features: Tensor) -> Tensor:
        """Return the cosines [K, H, W] of features [K, D] of unit length with the map upsampled to the image's pixels.

        Products are linear: they are upsampled, then divided by the norms of the upsampled features.
        """
        rows, columns = self._upsampling
        return torch.einsum("yh,khw,xw->kyx", rows, self._products(features), columns) / self._lengths

    @cached_property
    def _upsampling(self) -> tuple[Tensor, Tensor]:
        """Bilinear weights of the map's rows [H, h] and columns [W, w] for each row and column of pixels.

        Pixels beyond the outermost centres take the features of the border.
        """
        pixels = torch.arange(max(self.original), dtype=torch.float64)
        x, y = self.cells(pixels[:, None].expand(-1, 2)).unbind(1)
        (width, height), (h, w, _) = self.original, self.features.shape
        return _bilinear_weights(y[:height], h).to(self.features), _bilinear_weights(x[:width], w).to(self.features)

    @cached_property
    def _lengths(self) -> Tensor:
        """Lengths [H, W] of the upsampled features, one row at a time to save memory."""
        rows, columns = self._upsampling
        lengths = [(columns @ torch.einsum("h,hwd->wd", row, self.features)).norm(dim=1) for row in rows]
        return torch.stack(lengths).clamp(min=1e-12)


class DenseEncoder:
    """Encoder of pictures as feature maps of the layer and facet that its settings name.

    Raises:
        ValueError: the encoder has no such layer, facet or stride.
    """

    def __init__(self, encoder: Encoder, config: CorrespondenceConfig) -> None:
        self.encoder = LayerEncoder(encoder, facet=config.facet, depth=config.depth, **config.layer())
        self.config = config
        self._dense = dense_encoder(self.encoder, config)
        patch = self.encoder.patch_size
        if config.stride is not None and patch % config.stride:
            example = patch // 2 if patch % 2 == 0 else patch
            raise ValueError(f"stride {config.stride} does not divide the patch size {patch}; use e.g. {example}")

    @torch.no_grad()
    def __call__(self, picture: Picture) -> FeatureMap:
        """Return the features of a picture."""
        patch, stride = self.encoder.patch_size, self.config.stride
        if self.config.shape == "pad":
            picture = padded_to_square(picture)
        size = network_size(picture.size, self.config, patch)
        pixels = to_tensor(resize_picture(picture, *size))[None].to(self.encoder.device)
        image = normalise(pixels, self.encoder.mean, self.encoder.std)
        raw, corner = self.config.interpolated == "raw", self.config.alignment == "corner"
        features = self.features(image)
        features = features if raw else F.normalize(features, dim=-1)
        return FeatureMap(features, patch / 2, stride or patch, size, picture.size, raw, corner)

    @torch.no_grad()
    def features(self, image: Tensor) -> Tensor:
        """Return the features [h, w, D] of a normalised image [1, C, H, W]."""
        patch, stride = self.encoder.patch_size, self.config.stride
        features = self._features(image)  # [h, w, D]
        if stride is not None and stride != patch:
            features = self._interleaved(image, features, stride)
        return features

    def _interleaved(self, image: Tensor, plain: Tensor, stride: int) -> Tensor:
        """Return the features of every patch whose corner lies on a multiple of the stride.

        ::

            for each offset (down, right) within a patch, in steps of the stride:
                features[down::, right::] = features of the image cropped to begin at the offset

        A crop that does not begin at the border is one patch shorter. This works with any encoder, and a feature is
        what the encoder makes of an image that begins at the offset.
        """
        patch = self.encoder.patch_size
        height, width = image.shape[-2:]
        dense = plain.new_empty((height - patch) // stride + 1, (width - patch) // stride + 1, plain.shape[-1])
        steps = patch // stride
        for down in range(steps if height > patch else 1):
            for right in range(steps if width > patch else 1):
                top, left = down * stride, right * stride
                bottom, end = (top + height - patch if top else height), (left + width - patch if left else width)
                crop = image[..., top:bottom, left:end]
                dense[down::steps, right::steps] = plain if not (top or left) else self._features(crop)
        return dense

    def _features(self, image: Tensor) -> Tensor:
        """Return float32 [h, w, D] of an image [1, C, H, W]."""
        return cached(self._dense, image, "whole", lambda: self._dense.patches(image)[0].movedim(0, -1).float())


def network_size(size: Size, config: CorrespondenceConfig, patch_size: int) -> Size:
    """Return the size that an image is resized to: whole patches, at least one."""
    longer = max(size)
    sides = size if config.shape == "keep" else (longer, longer)
    width, height = (max(1, round(side * config.resolution / longer / patch_size)) * patch_size for side in sides)
    return width, height


def padded_to_square(picture: Picture) -> Picture:
    """Return an image with white pixels at its right or below, so that it is square; it may be huge if it is a strip.

    Raises:
        ValueError: the image is not RGB, or its square would be too large.
    """
    if not isinstance(picture, Image.Image):
        raise ValueError("shape is 'pad', but only RGB images are padded with white; use square or keep")
    side = max(picture.size)
    check_resized(picture.size, side, side)
    square = Image.new("RGB", (side, side), (255, 255, 255))
    square.paste(picture)
    return square


def _bilinear_weights(cells: Tensor, count: int) -> Tensor:
    """Return the bilinear weights [n, count] of coordinates [n] on an axis of `count` centres."""
    centres = torch.arange(count, dtype=cells.dtype)
    return (1 - (cells.clamp(0, count - 1)[:, None] - centres).abs()).clamp(min=0)
