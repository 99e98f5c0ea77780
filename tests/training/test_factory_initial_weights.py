"""Weights that a run begins from: what has no place in its network is left out and named, or refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from selfpatch.checkpoints.load import load_backbone
from selfpatch.checkpoints.read import Weights
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.config import AnyBackboneConfig
from selfpatch.models.encoder import BranchEncoder
from tests.helpers.released_forms import RESNET, SWIN, VIT, assert_same_features, random_backbone


def weights_of(backbone: Backbone, **more: Tensor) -> Weights:
    state = {f"backbone.{name}": tensor.clone() for name, tensor in backbone.state_dict().items()} | more
    return Weights(state, backbone.config, "released.pth", None, left_out=("queue",))


@pytest.mark.parametrize("other", [SWIN, RESNET], ids=["swin", "resnet"])
def test_weights_of_another_family_are_refused(other: AnyBackboneConfig) -> None:
    weights = weights_of(random_backbone(other))
    with pytest.raises(
        ValueError, match=f"released.pth holds a {other.family}, but the model is a vit; give a --model of the same"
    ):
        load_backbone(build_backbone(VIT), weights, allow_partial=True)


def test_a_trunk_below_a_pool_starts_from_weights_with_registers() -> None:
    shape = replace(VIT, num_registers=3, position_embedding="size")
    weights = weights_of(random_backbone(shape))
    backbone = build_backbone(replace(shape.for_pool(), num_registers=0))
    report = load_backbone(backbone, weights)
    assert torch.equal(backbone.trunk.pos_embed, weights.state["backbone.trunk.pos_embed"])
    left_out = {"cls_token", "reg_token", "norm.weight", "norm.bias"}
    assert set(report.left_out) == {f"backbone.trunk.{name}" for name in left_out} | {"queue"}
    assert not report.missing


def test_registers_that_a_whole_trunk_lacks_are_not_passed_over() -> None:
    """Its features would be others."""
    weights = weights_of(random_backbone(replace(VIT, num_registers=3, position_embedding="size")))
    with pytest.raises(
        ValueError, match=r"is of another architecture: backbone.trunk.pos_embed is \[1, 9, 128\] there"
    ):
        load_backbone(build_backbone(VIT), weights)


def test_a_mask_token_is_optional_on_both_sides() -> None:
    released = random_backbone(SWIN)
    masked = build_backbone(SWIN)
    masked.add_mask_token()
    with torch.no_grad():
        masked.mask_token.fill_(3.0)
    load_backbone(masked, weights_of(released))
    assert torch.equal(masked.mask_token, torch.full((1, 8), 3.0)), "there was none, so that it stays"

    token = {"backbone.mask_token": torch.full((1, 8), 7.0)}
    load_backbone(masked, weights_of(released, **token))
    assert torch.equal(masked.mask_token, torch.full((1, 8), 7.0))
    report = load_backbone(build_backbone(SWIN), weights_of(released, **token))
    assert "backbone.mask_token" in report.left_out


def test_a_resnet_is_loaded_with_its_statistics() -> None:
    released, backbone = random_backbone(RESNET), build_backbone(RESNET)
    load_backbone(backbone, weights_of(released))
    assert torch.equal(backbone.trunk.bn1.running_var, released.trunk.bn1.running_var)
    assert_same_features(BranchEncoder(backbone, None).eval(), released)
