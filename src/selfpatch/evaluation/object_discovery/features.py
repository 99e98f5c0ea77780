"""Patch features of an image in its own resolution, and the attention of its class token."""

import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.types import Encoder
from selfpatch.evaluation.encoders import dense_encoder
from selfpatch.evaluation.feature_cache import cached
from selfpatch.evaluation.object_discovery.config import ObjectDiscoveryConfig
from selfpatch.models.backbones.eva import Eva
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.finite_features import checked_features
from selfpatch.models.layer_encoder import LayerEncoder
from selfpatch.ops.images import normalise


class PatchView:
    """Features of the facet and layer of an encoder that its settings name.

    Features of a network other than a ViT are standardised over the map, as the released code does with a ResNet's:
    features without negative values, e.g. after a ReLU, are all similar to LOST. The released code also dilates a
    ResNet's last stage, as `output_stride` 16 does.

    Raises:
        ValueError: the encoder has no such facet or layer.
    """

    def __init__(self, encoder: Encoder, config: ObjectDiscoveryConfig) -> None:
        self.encoder, self.config = encoder, config
        backbone = encoder.backbone if isinstance(encoder, BranchEncoder) else None
        self.vit = backbone if isinstance(backbone, ViT) else None
        self.facet = config.facet or ("token" if self.vit is None else "key")
        self.layer = LayerEncoder(encoder, facet=self.facet, **config.layer())
        self.dense = dense_encoder(self.layer, config)

    def padded(self, image: Tensor) -> Tensor:
        """Return [1, C, H', W'] of an image [C, H, W], uint8 or float32: normalised, with zeros to the right and below.

        H' and W' are multiples of the layer's stride, a ViT's patch size.
        """
        batch = normalise(image[None].to(self.encoder.device), self.encoder.mean, self.encoder.std)
        bottom, right = (-side % self.layer.patch_size for side in image.shape[1:])
        return F.pad(batch, (0, right, 0, bottom))

    @torch.no_grad()
    def features(self, padded: Tensor) -> Tensor:
        """Return float32 features [h, w, D]."""
        features = cached(self.dense, padded, "whole", lambda: self.dense.patches(padded)[0].movedim(0, -1).float())
        if self.vit is None:
            features = F.layer_norm(features, features.shape)
        return features - features.mean((0, 1)) if self.config.centre else features

    @torch.no_grad()
    def class_attention(self, padded: Tensor) -> Tensor:
        """Return the class token's attention to each patch, [heads, h, w]; `class_token_vit` raises ValueError."""
        vit, block = self.class_token_vit(), self.layer.layer
        assert block is not None
        with torch.autocast(padded.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            (weights,) = vit.class_attention(padded, block - 1)
        return checked_features(weights, padded)

    def class_token_vit(self) -> ViT:
        """Return the ViT.

        Raises:
            ValueError: the network is no ViT, or has no class token.
        """
        if self.vit is None or not self.vit.has_class_token:
            raise ValueError(
                "attention boxes need a ViT with a class token, and this network has none; use lost or tokencut"
            )
        if isinstance(self.vit, Eva):
            raise ValueError(
                f"attention boxes are not read from timm's {self.vit.config.timm_model}; use lost or tokencut"
            )
        return self.vit
