"""Features that depth is predicted from, of images of any size."""

import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.transfer import to_device
from selfpatch.core.types import Encoder
from selfpatch.evaluation.degenerate import check_patches
from selfpatch.evaluation.depth.config import DepthConfig
from selfpatch.evaluation.depth.head import DepthHead
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.debiased import Debiasing
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.finite_features import checked_features
from selfpatch.models.layer_encoder import layer_at
from selfpatch.ops.images import normalise


class DepthFeatures:
    """Patch features of an encoder, or tokens of several blocks of a ViT.

    Attributes:
        dim: width of the features.
        blocks: numbers of the blocks, counted from 1; None for the encoder's own features.

    Raises:
        ValueError: the network does not have the blocks or the CLS token that the settings name.
    """

    def __init__(self, encoder: Encoder, config: DepthConfig) -> None:
        self.encoder, self.precision = encoder, config.precision
        self.blocks: tuple[int, ...] | None = None
        rank, mean, std = config.debias, encoder.mean, encoder.std
        self._debiased = Debiasing(self._features, rank, mean, std) if rank else None
        self.cls_token, self.dim = config.cls_token, encoder.dim
        if config.blocks is None:
            return
        if not (isinstance(encoder, BranchEncoder) and isinstance(encoder.backbone, ViT)):
            raise ValueError(f"blocks is {config.blocks}, but only a ViT of this package has blocks; leave it out")
        count = encoder.backbone.num_layers
        if config.blocks > count:
            raise ValueError(f"blocks is {config.blocks}, but this ViT has {count}; use 1 to {count}")
        if config.cls_token and not encoder.backbone.has_class_token:
            raise ValueError("cls_token is on, but this ViT has no CLS token; give --no-cls-token")
        self.blocks = tuple(layer_at((i + 1) / config.blocks, count) for i in range(config.blocks))
        self.dim = encoder.dim * config.blocks * (2 if config.cls_token else 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 [B, D, h, w] of normalised images [B, 3, H, W] of whole patches."""
        return self._features(images) if self._debiased is None else self._debiased(images)

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        device = self.encoder.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            if self.blocks is None:
                return checked_features(self.encoder.patches(images), images).float()
            assert isinstance(self.encoder, BranchEncoder)
            assert isinstance(self.encoder.backbone, ViT)
            parts = []
            for cls, patches in self.encoder.backbone.raw_tokens(images, self.blocks):
                parts.append(patches)
                if self.cls_token:
                    assert cls is not None
                    parts.append(cls[:, None, None].expand_as(patches))
            return checked_features(torch.cat(parts, -1).movedim(-1, 1).float(), images)


def predict_depth(head: DepthHead, features: DepthFeatures, pixels: Tensor, name: str = "") -> Tensor:
    """Return the depth [B, 1, H, W] in metres of images [B, 3, H, W] in uint8, of any size.

        pad with the mean colour to whole patches, as much on both sides
        depth = head(features), enlarged to the padded images (bilinear)
        cut off the padding

    Equal features of a single image are reported if it has a name.
    """
    encoder = features.encoder
    images = normalise(to_device(pixels, encoder.device), encoder.mean, encoder.std)
    (height, width), patch = images.shape[-2:], encoder.patch_size
    spare_rows, spare_columns = -height % patch, -width % patch
    top, left = spare_rows // 2, spare_columns // 2
    padded = F.pad(images, (left, spare_columns - left, top, spare_rows - top))
    maps = features(padded)
    if name:
        check_patches(maps[0].movedim(0, -1), name)
    depth = F.interpolate(head(maps), padded.shape[-2:], mode="bilinear")
    return depth[..., top : top + height, left : left + width]
