"""Feature pyramids of every backbone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from selfpatch.evaluation.detection.pyramid import InnerMaps, LastMap, padded
from selfpatch.models.layers.batch_norm import BatchNorm2d
from tests.helpers.detect_data import (
    tiny_encoder,
)


def vit(patch_size: int) -> Any:
    return tiny_encoder(patch_size=patch_size).backbone


@pytest.mark.parametrize(
    ("backbone", "strides"),
    [
        (lambda: vit(8), (4, 8, 16, 32, 64)),
        (lambda: vit(14), (3.5, 7, 14, 28, 56)),
        (lambda: vit(16), (4, 8, 16, 32, 64)),
        (lambda: tiny_encoder("swin_tiny").backbone, (4, 8, 16, 32, 64)),
        (lambda: tiny_encoder("resnet50").backbone, (4, 8, 16, 32, 64)),
    ],
    ids=["patch 8", "patch 14", "patch 16", "swin", "resnet"],
)
@pytest.mark.parametrize("kind", [InnerMaps, LastMap])
def test_maps_have_the_strides_that_they_claim(backbone: Any, strides: tuple[float, ...], kind: type) -> None:
    backbone = backbone()
    if kind is LastMap and backbone.config.family != "vit":
        pytest.skip("the simple pyramid is for a ViT")
    pyramid = kind(backbone, width=8).train()
    assert pyramid.strides == strides
    images = torch.randn(2, 3, 2 * pyramid.multiple, 4 * pyramid.multiple)
    maps = pyramid(images)
    assert len(maps) == 5
    for one, stride in zip(maps, strides, strict=True):
        assert one.shape == (2, 8, 2 * pyramid.multiple / stride, 4 * pyramid.multiple / stride)


def test_the_published_adapter_takes_blocks_4_6_8_and_12() -> None:
    pyramid = InnerMaps(tiny_encoder(depth=12, embed_dim=16).backbone, width=8)
    assert pyramid.blocks == (4, 6, 8, 12)
    rescale = InnerMaps(vit(16), width=8).rescale
    assert rescale is not None
    assert sum(isinstance(layer, BatchNorm2d) for layer in rescale.modules()) == 1


def test_a_pyramid_that_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match="simple feature pyramid is for a plain ViT"):
        LastMap(tiny_encoder("swin_tiny").backbone, width=8)
    with pytest.raises(ValueError, match="blocks are for a plain ViT"):
        InnerMaps(tiny_encoder("resnet50").backbone, width=8, blocks=(1, 2, 3, 4))
    with pytest.raises(ValueError, match="give 4 of 1 to 4"):
        InnerMaps(vit(8), width=8, blocks=(1, 2, 3, 5))
    with pytest.raises(ValueError, match="needs 4 stages; this resnet has 2"):
        InnerMaps(tiny_encoder("resnet50", depths=(1, 1)).backbone, width=8)


def test_a_resnet_is_trained_with_the_statistics_of_its_pre_training() -> None:
    pyramid = InnerMaps(tiny_encoder("resnet50").backbone, width=8)
    images = torch.randn(2, 3, 64, 64)
    learning, resting = (pyramid.train(mode).levels(images) for mode in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(learning, resting, strict=True))


def test_a_resnet_is_trained_with_the_statistics_of_the_batch_if_asked() -> None:
    pyramid = InnerMaps(tiny_encoder("resnet50").backbone, width=8, norm="batch", train_batch_norms=True)
    norms = [module for module in pyramid.modules() if isinstance(module, BatchNorm2d)]
    pyramid.train().levels(torch.randn(2, 3, 64, 64))
    assert sum(norm is not None for norm in norms) > 8
    assert all(len(norm.accumulated) == 1 for norm in norms)
    assert not any(norm.training for norm in pyramid.eval().modules())


def test_batches_are_padded_to_a_multiple() -> None:
    batch = padded([torch.ones(3, 20, 33), torch.ones(3, 41, 5)], 32)
    assert batch.shape == (2, 3, 64, 64)
    assert batch[0].sum() == 3 * 20 * 33
    assert batch[1, :, :41, :5].min() == 1
    assert padded([torch.ones(3, 20, 33)], 28, smallest=(100, 90)).shape == (1, 3, 112, 112)
