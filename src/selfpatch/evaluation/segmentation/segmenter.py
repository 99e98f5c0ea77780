"""The trained network of a decoder: a backbone, maps from inside it, and a decoder that gives logits per pixel."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from selfpatch.evaluation.feature_pyramid import FourStrides
from selfpatch.evaluation.segmentation.decoder_config import DecoderConfig
from selfpatch.evaluation.segmentation.decoders import FCNHead, Norm, SemanticFPN, UPerNet, norm_layer
from selfpatch.evaluation.segmentation.pixel_loss import pixel_loss
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.vit import ViT

AUXILIARY_WEIGHT = 0.4
AUXILIARY_LEVEL = 2


class Taps(nn.Module):
    """Maps from inside a backbone, as a decoder reads them.

    Blocks of a ViT, or stages of another network, are counted from 1. With `normed`, each map of a ViT goes through
    the trunk's final norm, where it has one (iBOT's `out_with_norm`). The stages of a Swin or ConvNeXt have new
    norms in any case, as in their released code.
    """

    def __init__(self, backbone: Backbone, blocks: Sequence[int], *, normed: bool) -> None:
        super().__init__()
        self.backbone, self.blocks = backbone, tuple(blocks)
        self.shared_norm = normed and isinstance(backbone, ViT)
        self.dims = tuple(backbone.map_dims[block - 1] for block in blocks)
        normed_anew = backbone.config.maps_need_norm
        self.norms = nn.ModuleList(nn.LayerNorm(dim) if normed_anew else nn.Identity() for dim in self.dims)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the maps [B, D_i, h_i, w_i] of images, channels last in memory."""
        maps = self.backbone.maps(images, self.blocks)  # [B, h_i, w_i, D_i]
        if self.shared_norm:
            assert isinstance(self.backbone, ViT)
            maps = [self.backbone.trunk.norm(x) for x in maps]
        return [norm(x).movedim(-1, 1) for norm, x in zip(self.norms, maps, strict=True)]


class Segmenter(nn.Module):
    """The network to train, for K classes.

    The method `upernet` has an auxiliary head on its third map; a Semantic FPN's head has half as many channels. Read
    of the settings are method, rescale, channels and auxiliary_channels.
    """

    def __init__(self, taps: Taps, num_classes: int, config: DecoderConfig, *, norm: Norm = "batch") -> None:
        super().__init__()
        self.taps = taps
        backbone = taps.backbone
        plain = isinstance(backbone, ViT)
        between = partial(norm_layer, norm=norm)
        self.pyramid = FourStrides(backbone.dim, backbone.patch_size, between) if config.rescale and plain else None
        self.auxiliary: FCNHead | None = None
        self.decoder: SemanticFPN | UPerNet
        dims, channels = taps.dims, config.channels
        if config.method == "fpn":
            self.decoder = SemanticFPN(dims, num_classes, channels=channels, head_channels=channels // 2, norm=norm)
        else:
            self.decoder = UPerNet(dims, num_classes, channels=channels, norm=norm)
            auxiliary = config.auxiliary_channels
            self.auxiliary = FCNHead(dims[AUXILIARY_LEVEL], num_classes, channels=auxiliary, norm=norm)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, K, H, W] of normalised images [B, C, H, W] of any size."""
        height, width = images.shape[-2:]
        logits = self.decoder(self._maps(images)).float().contiguous()
        return F.interpolate(logits, self._padded(images), mode="bilinear")[..., :height, :width]

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the decoder's loss for int64 labels [B, H, W], plus 0.4 of the auxiliary head's if there is one."""
        maps = self._maps(images)
        total = self._loss(self.decoder(maps), labels)
        if self.auxiliary is None:
            return total
        return total + AUXILIARY_WEIGHT * self._loss(self.auxiliary(maps[AUXILIARY_LEVEL]), labels)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy summed over the labelled pixels, divided by the number of all pixels.

        mmsegmentation averages so: a batch that is mostly void weighs little, and one that is only void gives 0.
        """
        return pixel_loss(logits, labels, self._padded(labels)) / labels.numel()

    def _maps(self, images: Tensor) -> list[Tensor]:
        (height, width), (padded_height, padded_width) = images.shape[-2:], self._padded(images)
        maps = self.taps(F.pad(images, (0, padded_width - width, 0, padded_height - height)))
        return maps if self.pyramid is None else self.pyramid(maps)

    def _padded(self, images: Tensor) -> tuple[int, int]:
        """Return the height and width of images [..., H, W] once they are padded to whole patches."""
        (height, width), patch = images.shape[-2:], self.taps.backbone.patch_size
        return height + -height % patch, width + -width % patch
