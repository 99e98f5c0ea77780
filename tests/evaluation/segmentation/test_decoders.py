"""Decoders of semantic segmentation: sizes, published parameter counts, strides, gradients, the loss."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfpatch.evaluation.finetuning import layer_groups, trainable_copy
from selfpatch.evaluation.segmentation.decoders import FCNHead, SemanticFPN, UPerNet
from selfpatch.evaluation.segmentation.decoders_network import (
    Segmenter,
    Taps,
    default_blocks,
    pixel_loss,
)
from selfpatch.models.backbones.build import build_backbone, build_timm, named_backbone_config
from selfpatch.models.backbones.config import AnyBackboneConfig, ResNetConfig, SwinConfig, ViTConfig


def vit(patch_size: int = 8, **settings: bool) -> ViTConfig:
    return ViTConfig(embed_dim=16, depth=4, num_heads=2, patch_size=patch_size, grid=4, **settings)


SWIN = SwinConfig(embed_dim=8, depths=(1, 1, 1, 1), first_heads=2, window=2)
RESNET = ResNetConfig(depths=(1, 1, 1, 1), width=4)
SHAPES = {
    "vit8": vit(8),
    "vit14": vit(14),
    "vit16": vit(16, class_token=False, final_norm=False),
    "swin": SWIN,
    "resnet": RESNET,
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
    taps = Taps(backbone, default_blocks(backbone, head), normed=normed)
    return Segmenter(taps, head, 3, rescale=rescale, channels=16, auxiliary_channels=8)


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


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


def test_a_semantic_fpn_has_the_parameters_of_the_released_one() -> None:
    laterals, smoothing = 4 * (384 * 256 + 256), 4 * (256 * 256 * 9 + 256)
    first = 256 * 128 * 9 + 2 * 128  # convolution without bias, norm
    further = 128 * 128 * 9 + 2 * 128
    head = 4 * first + 3 * further  # 1, 1, 2 and 3 convolutions
    assert laterals + smoothing + head + 128 * 150 + 150 == 4_397_718
    with torch.device("meta"):
        assert count(SemanticFPN([384] * 4, 150)) == 4_397_718
        resnet = build_backbone(named_backbone_config("resnet50"))
        # "Pyramid Vision Transformer" (arXiv 2102.12122), table 4: Semantic FPN of a ResNet-50 on ADE20K.
        assert round(count(resnet, SemanticFPN(resnet.map_dims, 150)) / 1e6, 1) == 28.5


def test_an_upernet_has_the_parameters_of_the_published_one() -> None:
    reduced, three = 768 * 512 + 1024, 512 * 512 * 9 + 1024
    bottleneck = (768 + 4 * 512) * 512 * 9 + 1024
    expected = 4 * reduced + bottleneck + 3 * reduced + 3 * three + 4 * 512 * 512 * 9 + 1024 + 512 * 150 + 150
    assert expected == 32_332_950
    with torch.device("meta"):
        assert count(UPerNet([768] * 4, 150)) == expected
        assert count(FCNHead(768, 150)) == 768 * 256 * 9 + 512 + 256 * 150 + 150
        for name, millions in {"swin_tiny": 60, "swin_small": 81, "swin_base": 121}.items():
            swin = build_backbone(named_backbone_config(name))
            taps = Taps(swin, default_blocks(swin, "upernet"), normed=False)
            network = Segmenter(taps, "upernet", 150, rescale=True, channels=512)
            assert round(count(network) / 1e6) == millions, "of arXiv 2103.14030, table 3"


def test_a_semantic_fpn_computes_what_its_docstring_says() -> None:
    torch.manual_seed(0)
    fpn = SemanticFPN([4] * 4, 3, channels=6, head_channels=5).eval()
    maps = [torch.randn(1, 4, side, side) for side in (16, 8, 4, 2)]
    top, summed = None, torch.zeros(1, 5, 16, 16)
    for i in reversed(range(4)):
        top = fpn.laterals[i](maps[i]) + (0 if top is None else top.repeat_interleave(2, 2).repeat_interleave(2, 3))
        level = fpn.smoothing[i](top)
        for part in fpn.heads[i]:
            enlarges = isinstance(part, nn.Upsample)
            level = F.interpolate(level, scale_factor=2, mode="bilinear") if enlarges else part(level)
        assert sum(isinstance(part, nn.Sequential) for part in fpn.heads[i]) == max(1, i)
        summed = summed + level
    torch.testing.assert_close(fpn(maps), fpn.classify(summed))


THEIR_NAMES = {
    "pooled.": "psp_modules.",
    "laterals.": "lateral_convs.",
    "smoothing.": "fpn_convs.",
    "fuse.": "fpn_bottleneck.",
}


def test_an_upernet_computes_what_that_of_transformers_does() -> None:
    upernet = pytest.importorskip("transformers.models.upernet.modeling_upernet")
    config = pytest.importorskip("transformers").UperNetConfig(hidden_size=6, num_labels=3)
    torch.manual_seed(0)
    ours, theirs = UPerNet([4, 5, 6, 7], 3, channels=6).eval(), upernet.UperNetHead(config, [4, 5, 6, 7]).eval()

    def their_name(name: str) -> str:
        for mine, other in THEIR_NAMES.items():
            name = name.replace(mine, other) if name.startswith(mine) else name
        *parts, index, kind = name.split(".")
        if parts == ["classify"]:
            return f"classifier.{kind}"
        block = [*parts, "1"] if parts[0] == "psp_modules" else parts  # their first one pools
        return ".".join([*block, ("conv", "batch_norm")[int(index)], kind])

    theirs.load_state_dict({their_name(name): value for name, value in ours.state_dict().items()}, strict=True)
    maps = [torch.randn(2, dim, side, side + 1) for dim, side in ((4, 17), (5, 9), (6, 5), (7, 3))]
    torch.testing.assert_close(ours(maps), theirs(maps))


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


def test_maps_are_taken_at_the_published_depths() -> None:
    with torch.device("meta"):
        base, large = (build_backbone(named_backbone_config(name)) for name in ("vit_base", "vit_large"))
        swin, short = build_backbone(SWIN), build_backbone(SwinConfig(embed_dim=8, depths=(1, 1), first_heads=2))
    assert default_blocks(base, "fpn") == (3, 6, 9, 12)
    assert default_blocks(base, "upernet") == (4, 6, 8, 12)
    assert default_blocks(large, "fpn") == (6, 12, 18, 24)
    assert default_blocks(large, "upernet") == (8, 12, 16, 24)
    assert default_blocks(swin, "upernet") == (1, 2, 3, 4)
    with pytest.raises(ValueError, match="a decoder looks at 4 stages; this swin has 2"):
        default_blocks(short, "fpn")


@pytest.mark.parametrize("shape", [vit(8), vit(8, class_token=False), SWIN, RESNET])
def test_a_trainable_copy_computes_the_same_at_the_size_of_the_crop(shape: AnyBackboneConfig) -> None:
    backbone = build_backbone(shape).eval()
    images = torch.randn(1, 3, 64, 64)
    copy = trainable_copy(backbone, drop_path=0.3, grid=64 // backbone.patch_size).eval()
    torch.testing.assert_close(copy(images).raw_patches, backbone(images).raw_patches)
    for parameter in copy.parameters():
        nn.init.zeros_(parameter)
    assert backbone(images).raw_patches.abs().sum() > 0, "the backbone is left as it is"


def test_a_trainable_copy_of_a_timm_network_has_positions_and_drop_path() -> None:
    backbone = build_timm("vit_tiny_patch16_224", in_channels=3).eval()
    copy = trainable_copy(backbone, drop_path=0.3, grid=4).eval()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(copy(images).patches, backbone(images).patches)
    assert copy.get_parameter("trunk.pos_embed").shape == (1, 17, 192)
    copy.train()
    assert not torch.equal(copy(images).patches, copy(images).patches)


def test_the_loss_is_averaged_over_all_pixels_and_ignores_void() -> None:
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    labels = torch.randint(0, 3, (2, 4, 4))
    torch.testing.assert_close(pixel_loss(logits, labels), F.cross_entropy(logits, labels))
    labels[0] = 255
    torch.testing.assert_close(pixel_loss(logits, labels), F.cross_entropy(logits[1:], labels[1:]) / 2)
    labels[:] = 255
    nothing = pixel_loss(logits, labels)
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
    grouped = Segmenter(taps, "upernet", 3, rescale=True, channels=16, auxiliary_channels=8, norm="group").train()
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
