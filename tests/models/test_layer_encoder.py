"""Layers of ViTs, Swins and ResNets as encoders: what is taken, its stride, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from selfpatch.core.types import Encoder
from selfpatch.evaluation.encoders import MeanColour
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.config import AnyBackboneConfig, ResNetConfig, SwinConfig, ViTConfig
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.layer_encoder import LayerEncoder

VIT = ViTConfig(embed_dim=16, depth=4, num_heads=2, patch_size=8, grid=4)
SWIN = SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), first_heads=1, window=3)
RESNET = ResNetConfig(depths=(1, 2, 1, 2), width=4)


def encoder_of(config: AnyBackboneConfig) -> BranchEncoder:
    torch.manual_seed(0)
    return BranchEncoder(build_backbone(config), None).eval()


def images(height: int = 96, width: int = 64) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.manual_seed(1))


@pytest.mark.parametrize(("config", "name", "last"), [(VIT, "block", 4), (SWIN, "stage", 4), (RESNET, "stage", 4)])
def test_the_last_layer_is_the_encoders_own(config: AnyBackboneConfig, name: str, last: int) -> None:
    encoder = encoder_of(config)
    for chosen in ({}, {name: last}, {"depth": 1.0}):
        layer = LayerEncoder(encoder, **chosen)
        assert isinstance(layer, Encoder)
        assert torch.equal(layer.patches(images()), encoder.patches(images()))
        assert torch.equal(layer.image(images()), encoder.image(images()))
        assert (layer.patch_size, layer.dim) == (encoder.patch_size, encoder.dim)
    normed = encoder.backbone(images()).patches
    assert torch.equal(LayerEncoder(encoder).patches(images()), normed.movedim(-1, 1))


@pytest.mark.parametrize(("config", "name", "stride"), [(VIT, "block", 8), (SWIN, "stage", 16), (RESNET, "stage", 16)])
def test_an_earlier_layer_is_its_map(config: AnyBackboneConfig, name: str, stride: int) -> None:
    encoder = encoder_of(config)
    layer = LayerEncoder(encoder, **{name: 3})
    features = layer.patches(images(80, 48))  # no multiples of 32
    assert torch.equal(features, encoder.backbone.maps(images(80, 48), [3])[0].movedim(-1, 1))
    assert features.shape == (2, layer.dim, 80 // stride, 48 // stride)
    assert layer.recorded() == {"block": None, "stage": None, "stride": stride} | {name: 3}
    assert torch.equal(LayerEncoder(encoder, depth=0.7).patches(images()), layer.patches(images()))


def test_facets_of_a_block() -> None:
    encoder = encoder_of(VIT)
    for facet in ("key", "query", "value"):
        for block, index in ((None, -1), (2, 1)):
            found = LayerEncoder(encoder, facet=facet, block=block).patches(images())
            assert torch.equal(found, encoder.backbone.facet(images(), facet, index).movedim(-1, 1))


@pytest.mark.parametrize(
    ("config", "settings", "layer", "stride"),
    [
        (SWIN, {}, 3, 16),
        (RESNET, {}, 3, 16),
        (RESNET, {"output_stride": 16}, 4, 16),
        (RESNET, {"output_stride": 8}, 4, 8),
        (RESNET, {"output_stride": 8, "dilate": False, "stage": 3}, 3, 8),
        (SwinConfig(embed_dim=8, depths=(1, 1), first_heads=1), {}, 2, 8),
        (VIT, {}, 4, 8),
    ],
)
def test_the_stage_nearest_to_a_stride(
    config: AnyBackboneConfig, settings: dict[str, Any], layer: int, stride: int
) -> None:
    """The last one of several; a ViT has one stride and keeps its last block."""
    found = LayerEncoder(encoder_of(config), near_stride=16, **settings)
    assert (found.layer, found.patch_size) == (layer, stride)
    assert found.patches(images()).shape[2:] == (96 // stride, 64 // stride)


def test_a_dilated_resnet_leaves_the_encoder_as_it_is() -> None:
    encoder = encoder_of(RESNET)
    before = encoder.patches(images())
    dilated = LayerEncoder(encoder, output_stride=16)
    assert dilated.patches(images()).shape == (2, 128, 6, 4)
    assert torch.equal(encoder.patches(images()), before)
    assert encoder.patch_size == 32


@pytest.mark.parametrize(
    ("encoder", "settings", "words"),
    [
        (encoder_of(VIT), {"block": 5}, "block is 5, but this vit has 4; use 1 to 4"),
        (encoder_of(VIT), {"stage": 1}, "stage is 1, but a vit has blocks; use block, 1 to 4"),
        (encoder_of(SWIN), {"block": 1}, "block is 1, but a swin has stages; use stage, 1 to 4"),
        (encoder_of(RESNET), {"stage": 5}, "stage is 5, but this resnet has 4; use 1 to 4"),
        (encoder_of(SWIN), {"output_stride": 16}, "output_stride is 16, but a swin cannot be dilated; leave it out"),
        (encoder_of(RESNET), {"facet": "key"}, "facet is 'key', but only a ViT has keys"),
        (MeanColour(8), {"stage": 1}, "stage is 1, but a MeanColour has no layers to choose from; leave it out"),
        (MeanColour(8), {"output_stride": 8}, "output_stride is 8, but a MeanColour cannot be dilated"),
    ],
)
def test_words_for_layers_that_are_not_there(encoder: Encoder, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LayerEncoder(encoder, **settings)


def test_any_encoder_is_taken() -> None:
    layer = LayerEncoder(MeanColour(8), near_stride=16, depth=0.5)
    assert torch.equal(layer.patches(images()), MeanColour(8).patches(images()))
    assert layer.recorded() == {"block": None, "stage": None, "stride": 8}
