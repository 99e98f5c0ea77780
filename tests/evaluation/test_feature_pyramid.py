"""The maps of a plain ViT at the strides of a convolutional network, which decoders and detectors share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from selfpatch.evaluation.detection.pyramid import InnerMaps
from selfpatch.evaluation.feature_pyramid import QUARTERS, THIRDS, FourStrides, default_maps, doublings, rescaling
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.config import SwinConfig, ViTConfig


def vit(depth: int) -> ViTConfig:
    return ViTConfig(embed_dim=8, depth=depth, num_heads=1, patch_size=8, grid=2)


@pytest.mark.parametrize(
    ("depth", "thirds", "quarters"),
    [
        (4, (1, 2, 3, 4), (1, 2, 3, 4)),
        (10, (3, 5, 7, 10), (3, 5, 8, 10)),
        (12, (4, 6, 8, 12), (3, 6, 9, 12)),
        (24, (8, 12, 16, 24), (6, 12, 18, 24)),
    ],
)
def test_maps_are_taken_at_the_published_depths_and_rounded_alike(
    depth: int, thirds: tuple[int, ...], quarters: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        backbone = build_backbone(vit(depth))
    assert default_maps(backbone, THIRDS) == InnerMaps(backbone, width=8).blocks == thirds
    assert default_maps(backbone, QUARTERS) == quarters


def test_maps_of_other_networks_are_their_stages() -> None:
    with torch.device("meta"):
        swin, short = (
            build_backbone(SwinConfig(embed_dim=8, depths=(1,) * stages, first_heads=2)) for stages in (4, 2)
        )
    assert default_maps(swin, THIRDS) == (1, 2, 3, 4)
    with pytest.raises(ValueError, match="a feature pyramid needs 4 stages; this swin has 2"):
        default_maps(short, QUARTERS)


@pytest.mark.parametrize(("times", "size"), [(2, (12, 20)), (1, (6, 10)), (0, (3, 5)), (-1, (2, 3)), (-3, (1, 1))])
def test_maps_come_to_other_strides(times: int, size: tuple[int, int]) -> None:
    """Halved sides are rounded up."""
    x = torch.randn(2, 4, 3, 5)
    rescaled = rescaling(4, times, nn.BatchNorm2d)(x)
    assert rescaled.shape == (2, 4, *size)
    if times < 0:
        assert torch.equal(rescaled.amax((2, 3)), x.amax((2, 3)))


def test_widths_follow_the_deconvolutions() -> None:
    layers = rescaling(16, 3, nn.BatchNorm2d, dims=[8, 6, 2])
    assert isinstance(layers, nn.Sequential)
    widths = [(part.in_channels, part.out_channels) for part in layers if isinstance(part, nn.ConvTranspose2d)]
    assert widths == [(16, 8), (8, 6), (6, 2)]
    assert [part.num_features for part in layers if isinstance(part, nn.BatchNorm2d)] == [8, 6]
    assert layers(torch.randn(2, 16, 1, 2)).shape == (2, 2, 8, 16)


@pytest.mark.parametrize("patch", [2, 4, 8, 16, 32])
def test_four_maps_have_the_strides_of_a_convolutional_network(patch: int) -> None:
    maps = [torch.randn(2, 4, 64 // patch, 128 // patch) for _ in range(4)]
    rescale = FourStrides(4, patch, nn.BatchNorm2d).train()
    assert rescale.strides == (4, 8, 16, 32)
    assert [x.shape for x in rescale(maps)] == [(2, 4, 64 // stride, 128 // stride) for stride in (4, 8, 16, 32)]


def test_patches_of_no_power_of_two_have_strides_near_by() -> None:
    assert FourStrides(4, 14, nn.BatchNorm2d).strides == (3.5, 7, 14, 28)
    assert doublings(14) == doublings(16) == (2, 1, 0, -1)


def test_patch_16_is_rescaled_as_in_beit() -> None:
    rescale = FourStrides(4, 16, nn.BatchNorm2d)
    assert [[type(part).__name__ for part in level.modules()] for level in rescale.levels] == [
        ["Sequential", "ConvTranspose2d", "BatchNorm2d", "GELU", "ConvTranspose2d"],
        ["Sequential", "ConvTranspose2d"],
        ["Identity"],
        ["MaxPool2d"],
    ]


def test_each_level_takes_its_own_map() -> None:
    maps = [torch.full((1, 4, 2, 2), float(level)) for level in range(4)]
    found = FourStrides(4, 16, nn.BatchNorm2d)(maps)
    assert torch.equal(found[2], maps[2])
    assert torch.equal(found[3], maps[3][..., :1, :1])
