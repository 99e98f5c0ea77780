"""Parameter groups of an optimizer: which parameters decay, and the learning rate of each layer."""

from collections.abc import Mapping
from typing import Any, Literal

from torch import nn

from selfpatch.models.backbones.base import Backbone
from selfpatch.models.pooling import PositivePool

DecayRule = Literal[
    "matrices", "matrices_but_positions", "matrices_but_tokens", "matrices_and_biases", "all_but_norms",
    "all_but_tokens", "all",
]  # fmt: skip
LRScales = Mapping[nn.Parameter, float]
"""Factors on the learning rate by parameter."""
PATCH_PROJECTION = "trunk.patch_embed."
"""Beginning of the names of a ViT's or Swin's patch projection in its backbone."""
POSITIONS = ("pos_embed", "cls_token", "relative_position_bias_table")
"""Name endings of what ViT and Swin exempt from decay where an optimizer asks them; the released MoBY does not ask."""
TOKENS = (*POSITIONS, "reg_token", "pool.query")
"""Name endings of what timm does not decay in fine-tuning."""


def is_decayed(name: str, parameter: nn.Parameter, rule: DecayRule, *, in_norm: bool) -> bool:
    """Return whether weight decay applies to a parameter.

    Args:
        name: name of the parameter in its network.
        parameter: the parameter.
        rule: `matrices` leaves out biases and 1-D tensors (DINO, SelfPatch, iBOT, MoBY), `matrices_but_positions` also
            the CLS token, position embeddings and relative position biases (supervised Swin), `matrices_but_tokens`
            every token and position (timm's fine-tuning). `matrices_and_biases` leaves out 1-D tensors other than
            biases (SERE's code), `all_but_norms` norms, tokens and positions (SelfPatch's configuration of
            mmdetection), `all_but_tokens` tokens and positions alone (that of mmsegmentation), `all` nothing (MoCo).
        in_norm: whether the parameter belongs to a norm.
    """
    bias, flat = name.endswith(".bias"), parameter.ndim == 1
    return {
        "matrices": not (bias or flat),
        "matrices_but_positions": not (bias or flat or name.endswith(POSITIONS)),
        "matrices_but_tokens": not (bias or flat or name.endswith(TOKENS)),
        "matrices_and_biases": bias or not flat,
        "all_but_norms": not (in_norm or name.endswith(TOKENS)),
        "all_but_tokens": not name.endswith(TOKENS),
        "all": True,
    }[rule]


def layer_lr_scales(backbone: Backbone, layer_decay: float, patch_embed_scale: float = 1.0) -> LRScales:
    """Return the factor on the learning rate of each parameter of a backbone.

        layer l of the L of the backbone: layer_decay^(L + 1 - l)

    The embedding is layer 0; what comes after the last block is layer L + 1. A mask token is left out, where DINOv2's
    released code takes it for a part of the embedding. The patch projection has the factor `patch_embed_scale` on top.
    """
    top = backbone.num_layers + 1
    return {
        parameter: layer_decay ** (top - backbone.layer_of(name))
        * (patch_embed_scale if name.startswith(PATCH_PROJECTION) else 1.0)
        for name, parameter in backbone.named_parameters()
        if name != "mask_token"
    }


def head_lr_scales(network: nn.Module, backbone: Backbone, pool: nn.Module | None, scale: float) -> LRScales:
    """Return the factor `scale` for each parameter of a network outside its backbone.

    The norm of a positive pool is left out: it replaces the trunk's final norm, or is that very norm.
    """
    norm = pool.norm if isinstance(pool, PositivePool) else nn.Identity()
    left_out = {*backbone.parameters(), *norm.parameters()}
    return {parameter: scale for parameter in network.parameters() if parameter not in left_out}


def param_groups(
    network: nn.Module,
    *,
    weight_decay_on: DecayRule = "matrices",
    lr_scales: LRScales | None = None,
) -> list[dict[str, Any]]:
    """Return the trainable parameters in groups of one learning rate each, with or without weight decay.

    Args:
        network: what is trained.
        weight_decay_on: see `is_decayed`.
        lr_scales: factor on the learning rate by parameter; parameters that are missing have the factor 1.

    Returns:
        Dicts with `params`, `decayed` and `lr_scale`, and `weight_decay` 0 where it does not apply.
    """
    scales = lr_scales or {}
    norms = (part for part in network.modules() if "Norm" in type(part).__name__)
    of_norms = {parameter for norm in norms for parameter in norm.parameters(recurse=False)}
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {(1.0, True): [], (1.0, False): []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            decays = is_decayed(name, parameter, weight_decay_on, in_norm=parameter in of_norms)
            key = scales.get(parameter, 1.0), decays
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "decayed": decayed, "lr_scale": scale} | ({} if decayed else {"weight_decay": 0.0})
        for (scale, decayed), parameters in groups.items()
        if parameters
    ]
