"""Weight decay and learning rates by parameter, as the released codes have them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from selfpatch.models.param_groups import layer_lr_scales, param_groups
from tests.helpers.tiny import tiny_student_teacher


class Parts(nn.Module):
    """One parameter of each kind that the rules tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.norm = nn.LayerNorm(3)
        self.token = nn.Parameter(torch.randn(1, 1, 3))
        self.pos_embed = nn.Parameter(torch.randn(1, 4, 3))
        self.frozen = nn.Parameter(torch.randn(2, 2), requires_grad=False)
        self.table = nn.Module()
        self.table.bias = nn.Parameter(torch.randn(2, 2))  # a bias of two dimensions


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("matrices", {"linear.bias", "norm.weight", "norm.bias", "table.bias"}),
        ("matrices_but_positions", {"linear.bias", "norm.weight", "norm.bias", "table.bias", "pos_embed"}),
        ("matrices_and_biases", {"norm.weight"}),
        ("all_but_norms", {"norm.weight", "norm.bias", "pos_embed"}),
        ("all_but_tokens", {"pos_embed"}),
    ],
    ids=["DINO, SelfPatch and MoBY", "supervised Swin", "SERE", "SelfPatch's detector", "SelfPatch's Semantic FPN"],
)
def test_weight_decay_leaves_out_what_the_released_code_leaves_out(rule: str, kept: set[str]) -> None:
    parts = Parts()
    names = {id(p): name for name, p in parts.named_parameters()}
    decayed_group, kept_group = param_groups(parts, weight_decay_on=rule)
    assert {names[id(p)] for p in kept_group["params"]} == kept
    assert {names[id(p)] for p in decayed_group["params"]} == set(names.values()) - kept - {"frozen"}


def test_moco_decays_everything() -> None:
    parts = Parts()
    (group,) = param_groups(parts, weight_decay_on="all")
    assert {id(p) for p in group["params"]} == {id(p) for p in parts.parameters() if p.requires_grad}


def test_the_patch_projection_learns_more_slowly_on_top_of_the_layers_decay() -> None:
    backbone = tiny_student_teacher(objective="none").student.backbone
    names = {parameter: name for name, parameter in backbone.named_parameters()}
    scales = {names[parameter]: scale for parameter, scale in layer_lr_scales(backbone, 0.5, 0.2).items()}
    assert scales["trunk.patch_embed.proj.weight"] == scales["trunk.patch_embed.proj.bias"] == 0.2 * 0.5**3
    assert scales["trunk.cls_token"] == 0.5**3
    assert scales["trunk.blocks.1.attn.qkv.weight"] == 0.5
    assert scales["trunk.norm.weight"] == 1
