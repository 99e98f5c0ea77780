"""What evaluations share that train the network along: a copy of the backbone, and the optimizer's groups."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.positions import add_positions
from selfpatch.models.backbones.vit import ViT

UNDECAYED = ("pos_embed", "cls_token", "reg_token", "relative_position_bias_table", "pool.query")
"""Ends of the names of tokens and positions, which weight decay is not for, as timm has it."""


def trainable_copy(backbone: Backbone, *, drop_path: float, grid: int | None = None) -> Backbone:
    """The same network with drop path, and without a mask token, as nothing is masked.

    Args:
        backbone: stays as it is.
        grid: side that the stored positions of a ViT are resized to; None: they stay as they are.
    """
    state = {name: value for name, value in backbone.state_dict().items() if name != "mask_token"}
    shape = backbone.shape
    if grid is not None and isinstance(backbone, ViT) and backbone.trunk.pos_embed is not None:
        state["trunk.pos_embed"] = _resized_positions(backbone, grid)
        shape = replace(backbone.shape, grid=grid)
    copy = build_backbone(shape, drop_path=drop_path)
    copy.load_state_dict(state)
    return copy


@torch.no_grad()
def _resized_positions(backbone: ViT, grid: int) -> Tensor:
    """[1, prefix + grid * grid, D]: what the network itself would add to the patches of a map of that size."""
    trunk = backbone.trunk
    assert trunk.pos_embed is not None
    prefix = trunk.pos_embed[:, : trunk.pos_embed.shape[1] - backbone.shape.grid**2]
    nothing = trunk.pos_embed.new_zeros(1, grid, grid, backbone.dim)
    placed = add_positions(trunk, nothing, backbone.shape.position_embedding)
    return torch.cat([prefix, placed[:, trunk.num_prefix_tokens :]], dim=1)


def layer_groups(
    network: nn.Module, backbone: Backbone, *, lr: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """The trainable parameters of a network for an optimizer, by learning rate and weight decay:

        layer l of the L of the backbone: lr * layer_decay^(L + 1 - l)

    The embedding is layer 0, and all above the last block, the heads among it, L + 1. Weight decay is neither for
    norms, biases and other 1-D parameters nor for `UNDECAYED`.

    Args:
        network: what is trained.
        backbone: the part of it that has layers.
        lr: of the heads.
    """
    top = backbone.num_layers + 1
    layers = {parameter: backbone.layer_of(name) for name, parameter in backbone.named_parameters()}
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decayed = parameter.ndim > 1 and not name.endswith(UNDECAYED)
            groups.setdefault((layers.get(parameter, top), decayed), []).append(parameter)
    return [
        {"params": some, "lr": lr * layer_decay ** (top - layer), "weight_decay": weight_decay if decayed else 0.0}
        for (layer, decayed), some in groups.items()
    ]
