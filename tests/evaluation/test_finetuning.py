"""What evaluations share that train the network along: the copy, and the optimizer's groups."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from selfpatch.evaluation.finetuning import layer_groups, trainable_copy
from selfpatch.models.backbones.build import build_backbone, build_timm
from selfpatch.models.backbones.config import AnyBackboneConfig, ResNetConfig, SwinConfig, ViTConfig

VIT = ViTConfig(embed_dim=16, depth=3, num_heads=2, patch_size=8, grid=4, num_registers=2)
SHAPES = pytest.mark.parametrize(
    "shape",
    [
        VIT,
        replace(VIT, rope=True),
        SwinConfig(embed_dim=8, depths=(1, 1), first_heads=1, window=4),
        ResNetConfig(depths=(1, 1), width=4),
    ],
    ids=["vit", "rotary vit", "swin", "resnet"],
)


@SHAPES
def test_a_copy_computes_the_same_and_leaves_the_mask_token_behind(shape: AnyBackboneConfig) -> None:
    backbone = build_backbone(shape).eval()
    backbone.register_parameter("mask_token", nn.Parameter(torch.zeros(1, 16)))
    copy = trainable_copy(backbone, drop_path=0.3).eval()
    images = torch.randn(2, 3, 32, 64)
    torch.testing.assert_close(copy(images).patches, backbone(images).patches)
    assert copy.mask_token is None
    assert copy.config == shape, "its positions stay as they are stored"
    assert all(a is not b for a, b in zip(copy.parameters(), backbone.parameters(), strict=False))


def test_positions_at_another_grid_are_those_that_the_network_would_add() -> None:
    backbone = build_backbone(VIT).eval()
    copy = trainable_copy(backbone, drop_path=0.0, grid=6).eval()
    assert copy.config.grid == 6  # type: ignore[union-attr]
    images = torch.randn(1, 3, 48, 48)
    torch.testing.assert_close(copy(images).patches, backbone(images).patches)
    assert torch.equal(copy.get_parameter("trunk.reg_token"), backbone.get_parameter("trunk.reg_token"))


@SHAPES
def test_what_is_drawn_after_a_copy_stays_what_it_is(shape: AnyBackboneConfig) -> None:
    """First weights of pyramids and decoders come after it: published numbers hang on them."""
    backbone = build_backbone(shape)
    torch.manual_seed(0)
    copy = trainable_copy(backbone, drop_path=0.1, grid=5)
    after = torch.rand(1)
    torch.manual_seed(0)
    build_backbone(copy.config, drop_path=0.1)
    assert torch.equal(after, torch.rand(1))


@SHAPES
def test_every_trained_parameter_is_in_one_group_and_no_frozen_one(shape: AnyBackboneConfig) -> None:
    backbone = build_backbone(shape)
    backbone.freeze_first(1)
    network = nn.ModuleDict({"head": nn.Linear(16, 2), "backbone": backbone})
    groups = layer_groups(network, backbone, lr=8.0, layer_decay=0.5, weight_decay=0.1)
    grouped = [parameter for group in groups for parameter in group["params"]]
    assert {*grouped} == {p for p in network.parameters() if p.requires_grad}
    assert len(grouped) == len({*grouped})
    layers = backbone.num_layers
    assert {group["lr"] for group in groups} == {8.0 * 0.5 ** (layers + 1 - layer) for layer in range(2, layers + 2)}


def test_neither_positions_nor_tokens_are_decayed() -> None:
    backbone = build_backbone(VIT)
    groups = layer_groups(backbone, backbone, lr=1.0, layer_decay=1.0, weight_decay=0.1)
    decay = {parameter: group["weight_decay"] for group in groups for parameter in group["params"]}
    kept = {name for name, parameter in backbone.named_parameters() if parameter.ndim > 1 and not decay[parameter]}
    assert kept == {"trunk.pos_embed", "trunk.cls_token", "trunk.reg_token"}
    assert not decay[backbone.trunk.norm.weight]
    groups = layer_groups(
        backbone, backbone, lr=1.0, layer_decay=1.0, weight_decay=0.1, weight_decay_on="all_but_tokens"
    )
    without = [parameter for group in groups for parameter in group["params"] if not group["weight_decay"]]
    assert {name for name, parameter in backbone.named_parameters() if any(parameter is p for p in without)} == kept


def test_tokens_decay_where_a_released_optimizer_decays_them() -> None:
    backbone = build_backbone(VIT)
    groups = layer_groups(backbone, backbone, lr=1.0, layer_decay=1.0, weight_decay=0.1, weight_decay_on="matrices")
    decay = {parameter: group["weight_decay"] for group in groups for parameter in group["params"]}
    for name, parameter in backbone.named_parameters():
        flat = parameter.ndim == 1 or name.endswith(".bias")
        assert decay[parameter] == (0.0 if flat else 0.1), name


@SHAPES
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
