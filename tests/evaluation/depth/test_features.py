"""Tokens of blocks, padding to whole patches, and encoders that lack what is asked for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selfpatch.evaluation.depth.config import DepthConfig
from selfpatch.evaluation.depth.features import DepthFeatures, predict_depth
from selfpatch.evaluation.depth.head import DepthHead
from selfpatch.evaluation.encoders import MeanColour
from tests.helpers.labelled_images import tiny_encoder


def test_blocks_and_cls_tokens_are_concatenated() -> None:
    encoder = tiny_encoder("vit")
    features = DepthFeatures(encoder, DepthConfig(blocks=3, cls_token=True))
    images = torch.randn(2, 3, 16, 24)
    got = features(images)
    assert features.blocks == (1, 2, 3)
    assert got.shape == (2, features.dim, 2, 3)
    assert features.dim == 3 * 2 * 16
    raw = encoder.backbone(images).raw_patches.movedim(-1, 1)
    torch.testing.assert_close(got[:, 64:80], raw)
    first = encoder.backbone.maps(images, [1])[0].movedim(-1, 1)
    torch.testing.assert_close(got[:, :16], first)
    cls = got[:, 80:]
    assert torch.equal(cls, cls[..., :1, :1].expand_as(cls))
    normed = encoder.backbone.trunk.norm(cls[..., 0, 0])
    torch.testing.assert_close(normed, encoder.backbone(images).cls)
    assert not got.requires_grad


def test_blocks_are_evenly_spread_and_end_with_the_last() -> None:
    assert DepthFeatures(tiny_encoder("vit"), DepthConfig(blocks=1)).blocks == (3,)
    assert DepthFeatures(tiny_encoder("vit"), DepthConfig(blocks=2)).blocks == (2, 3)
    assert DepthFeatures(tiny_encoder("vit"), DepthConfig()).blocks is None


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("vit", {"blocks": 4}, "blocks is 4, but this ViT has 3; use 1 to 3"),
        ("swin", {"blocks": 1}, "only a ViT of this package has blocks"),
        ("vit+pool", {"blocks": 1, "cls_token": True}, "this ViT has no CLS token"),
    ],
)
def test_what_a_network_lacks_is_refused(kind: str, settings: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DepthFeatures(tiny_encoder(kind), DepthConfig(**settings))


class Watched(MeanColour):
    """Notes what it encodes."""

    def __init__(self) -> None:
        super().__init__(8)
        self.images: list[Tensor] = []

    def patches(self, images: Tensor) -> Tensor:
        self.images.append(images)
        return super().patches(images)


def test_images_are_padded_on_both_sides_and_depths_cut() -> None:
    encoder = Watched()
    head = DepthHead(3, 4, (1.0, 9.0), batch_norm=False, upsample=1, seed=0)
    pixels = torch.full((1, 3, 21, 16), 255, dtype=torch.uint8)
    depth = predict_depth(head, DepthFeatures(encoder, DepthConfig()), pixels)
    assert depth.shape == (1, 1, 21, 16)
    (padded,) = encoder.images
    assert padded.shape == (1, 3, 24, 16)
    filled = padded[0, 0, :, 0]
    assert filled.tolist() == [0.0] + [1.0] * 21 + [0.0] * 2
