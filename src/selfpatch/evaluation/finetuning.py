"""Fine-tuning the backbone within an evaluation: a trainable copy, and the optimizer's parameter groups."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from selfpatch.core.types import Encoder
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.positions import add_positions
from selfpatch.models.backbones.vit import ViT
from selfpatch.models.encoder import BranchEncoder
from selfpatch.models.param_groups import DecayRule, layer_lr_scales, param_groups


def require_network(encoder: Encoder) -> BranchEncoder:
    """Return the encoder if it is a network of this package, which alone can be fine-tuned; else raise ValueError."""
    if not isinstance(encoder, BranchEncoder):
        raise ValueError(
            f"a {type(encoder).__name__} cannot be fine-tuned; give weights of a ViT, a Swin, a ResNet or a ConvNeXt"
        )
    return encoder


def trainable_copy(backbone: Backbone, *, drop_path: float, grid: int | None = None) -> Backbone:
    """Return a copy of a network with drop path, and without a mask token, because nothing is masked.

    `drop_path` is the stochastic depth rate of the last block. A `grid` is the side in patches to resize a ViT's
    positions to.
    """
    state = {name: value for name, value in backbone.state_dict().items() if name != "mask_token"}
    shape = backbone.config
    if grid is not None and isinstance(backbone, ViT) and backbone.trunk.pos_embed is not None:
        state["trunk.pos_embed"] = _resized_positions(backbone, grid)
        shape = replace(backbone.config, grid=grid)
    copy = build_backbone(shape, drop_path=drop_path)
    copy.load_state_dict(state)
    return copy


@torch.no_grad()
def _resized_positions(backbone: ViT, grid: int) -> Tensor:
    """Return the positions [1, prefix + grid * grid, D] that the network itself would add to a map of that size."""
    trunk = backbone.trunk
    assert trunk.pos_embed is not None
    prefix = trunk.pos_embed[:, : trunk.pos_embed.shape[1] - backbone.config.grid**2]
    zeros = trunk.pos_embed.new_zeros(1, grid, grid, backbone.dim)
    placed = add_positions(trunk, zeros, backbone.config.position_embedding)
    return torch.cat([prefix, placed[:, trunk.num_prefix_tokens :]], dim=1)


def layer_groups(
    network: nn.Module,
    backbone: Backbone,
    *,
    lr: float,
    layer_decay: float,
    weight_decay: float,
    weight_decay_on: DecayRule = "matrices_but_tokens",
) -> list[dict[str, Any]]:
    """Return the trainable parameters of a network for an optimizer, by learning rate and weight decay.

    The heads use `lr`. Layers of the backbone, a part of the network, have the lower rates of `layer_lr_scales`.
    `models.param_groups.is_decayed` explains `weight_decay_on`.
    """
    scales = layer_lr_scales(backbone, layer_decay)
    return [
        {"params": group["params"], "lr": lr * group["lr_scale"], "weight_decay": weight_decay * group["decayed"]}
        for group in param_groups(network, weight_decay_on=weight_decay_on, lr_scales=scales)
    ]
