"""The trained network: sizes, maps, gradients, the loss, learning rates."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from selfpatch.evaluation.feature_pyramid import QUARTERS, THIRDS, default_maps
from selfpatch.evaluation.finetuning import layer_groups, trainable_copy
from selfpatch.evaluation.segmentation.decoder_config import DecoderConfig, FPNConfig, UPerNetConfig
from selfpatch.evaluation.segmentation.segmenter import Segmenter, Taps
from selfpatch.models.backbones.build import build_backbone, build_timm
from selfpatch.models.backbones.config import AnyBackboneConfig, ConvNeXtConfig, ResNetConfig, SwinConfig, ViTConfig
from tests.helpers.tiny_eva import EVA02

CONFIGS: dict[str, type[DecoderConfig]] = {"fpn": FPNConfig, "upernet": UPerNetConfig}


def vit(patch_size: int = 8, **settings: bool) -> ViTConfig:
    return ViTConfig(embed_dim=16, depth=4, num_heads=2, patch_size=patch_size, grid=4, **settings)


SWIN = SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), first_heads=2, window=2)


RESNET = ResNetConfig(depths=(1, 1, 1, 1), width=4)


SHAPES = {
    "vit8": vit(8),
    "vit14": vit(14),
    "vit16": vit(16, class_token=False, final_norm=False),
    "swin": SWIN,
    "eva": build_timm(EVA02).config,
    "resnet": RESNET,
    "convnext": ConvNeXtConfig(embed_dim=8, depths=(1, 1, 1, 1)),
}


ALL_SHAPES = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())


HEADS = pytest.mark.parametrize("head", ["fpn", "upernet"])


def segmenter(
    shape: AnyBackboneConfig,
    head: Literal["fpn", "upernet"],
    *,
    rescale: bool = True,
    normed: bool = False,
    side: int = 32,
) -> Segmenter:
    torch.manual_seed(0)
    plain = build_backbone(shape)
    backbone = trainable_copy(plain, drop_path=0.0, grid=math.ceil(side / plain.patch_size))
    taps = Taps(backbone, default_maps(backbone, QUARTERS if head == "fpn" else THIRDS), normed=normed)
    return Segmenter(taps, 3, CONFIGS[head](rescale=rescale, channels=16, auxiliary_channels=8))


@HEADS
@ALL_SHAPES
def test_every_pixel_of_an_image_of_any_size_gets_logits(
    shape: AnyBackboneConfig, head: Literal["fpn", "upernet"]
) -> None:
    network = segmenter(shape, head).eval()
    for height, width in ((1, 1), (32, 32), (45, 70)):
        assert network(torch.randn(1, 3, height, width)).shape == (1, 3, height, width)


@HEADS
@ALL_SHAPES
def test_gradients_reach_the_first_layer_of_the_backbone(
    shape: AnyBackboneConfig, head: Literal["fpn", "upernet"]
) -> None:
    network = segmenter(shape, head, side=56).train()
    network.loss(torch.randn(2, 3, 56, 56), torch.randint(0, 3, (2, 56, 56))).backward()
    first = next(network.taps.backbone.trunk.parameters())
    assert first.grad is not None
    assert first.grad.abs().sum() > 0
    without = [name for name, p in network.named_parameters() if p.grad is None and not name.startswith("taps.back")]
    assert without == []


def test_without_rescaling_a_decoder_sees_the_maps_as_they_are() -> None:
    network = segmenter(SHAPES["vit8"], "fpn", rescale=False).eval()
    assert network.pyramid is None
    images = torch.randn(1, 3, 32, 32)
    maps = network._maps(images)
    assert [x.shape for x in maps] == [(1, 16, 4, 4)] * 4
    torch.testing.assert_close(maps[-1], network.taps.backbone(images).raw_patches.movedim(-1, 1))


def test_normed_maps_have_been_through_the_final_norm() -> None:
    network = segmenter(SHAPES["vit8"], "upernet", rescale=False, normed=True).eval()
    images = torch.randn(1, 3, 32, 32)
    expected = network.taps.backbone(images).patches.movedim(-1, 1)
    torch.testing.assert_close(network._maps(images)[-1], expected)


def test_the_loss_is_averaged_over_all_pixels_and_ignores_void() -> None:
    network = segmenter(SHAPES["vit8"], "fpn")
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    labels = torch.randint(0, 3, (2, 8, 8))
    torch.testing.assert_close(network._loss(logits, labels), F.cross_entropy(logits, labels))
    labels[0] = 255
    torch.testing.assert_close(network._loss(logits, labels), F.cross_entropy(logits[1:], labels[1:]) / 2)
    labels[:] = 255
    nothing = network._loss(logits, labels)
    nothing.backward()
    assert nothing == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_the_auxiliary_head_adds_two_fifths_of_its_loss() -> None:
    network = segmenter(SHAPES["vit8"], "upernet").eval()
    images, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32))
    assert network.auxiliary is not None

    def interpolated(logits: Tensor) -> Tensor:
        return F.interpolate(logits, size=(32, 32), mode="bilinear")

    maps = network._maps(images)
    main, auxiliary = interpolated(network.decoder(maps)), interpolated(network.auxiliary(maps[2]))
    expected = F.cross_entropy(main, labels) + 0.4 * F.cross_entropy(auxiliary, labels)
    torch.testing.assert_close(network.loss(images, labels), expected)


def test_group_norm_trains_on_a_single_image() -> None:
    backbone = build_backbone(vit(8))
    taps = Taps(backbone, (1, 2, 3, 4), normed=False)
    image, label = torch.randn(1, 3, 32, 32), torch.zeros(1, 32, 32, dtype=torch.int64)
    grouped = Segmenter(taps, 3, UPerNetConfig(channels=16, auxiliary_channels=8), norm="group").train()
    grouped.loss(image, label).backward()
    pooled = grouped.decoder.get_submodule("pooled.0.0").get_parameter("weight")
    assert pooled.grad is not None
    assert pooled.grad.abs().sum() > 0


def test_learning_rates_decay_towards_the_embedding() -> None:
    network = segmenter(SHAPES["vit8"], "upernet")
    groups = layer_groups(network, network.taps.backbone, lr=1.0, weight_decay=0.5, layer_decay=0.5)
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(of) == len(list(network.parameters()))

    def found(name: str) -> tuple[float, float]:
        group = of[id(network.get_parameter(name))]
        return group["lr"], group["weight_decay"]

    trunk = "taps.backbone.trunk."
    assert found("decoder.fuse.0.weight") == (1.0, 0.5)
    assert found("decoder.fuse.1.weight") == (1.0, 0.0)
    assert found(trunk + "norm.weight") == (1.0, 0.0)
    assert found(trunk + "blocks.3.mlp.fc1.weight") == (0.5, 0.5)
    assert found(trunk + "blocks.0.mlp.fc1.bias") == (0.5**4, 0.0)
    assert found(trunk + "patch_embed.proj.weight") == (0.5**5, 0.5)
    assert found(trunk + "pos_embed") == found(trunk + "cls_token") == (0.5**5, 0.0)
