"""Tiny ViTs of timm's class `Eva`, registered with timm so that they have names as its own have."""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.eva import Eva, _cfg, _create_eva

EVA02 = "eva02_of_tests"
__all__ = ["eva02_of_tests", "vit_pe_of_tests", "vit_rope_mixed_of_tests"]

_CONFIG = _cfg(input_size=(3, 32, 32), num_classes=0)
default_cfgs = generate_default_cfgs({f"{name}.random": _CONFIG for name in __all__})
SIZES: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


@register_model
def eva02_of_tests(pretrained: bool = False, **kwargs: Any) -> Eva:
    """As EVA-02: separate queries, keys and values, gated and normed MLP, both kinds of positions, averaging."""
    settings = {"qkv_fused": False, "swiglu_mlp": True, "scale_mlp": True, "use_rot_pos_emb": True}
    return _create_eva("eva02_of_tests", pretrained, **SIZES | settings | kwargs)


@register_model
def vit_pe_of_tests(pretrained: bool = False, **kwargs: Any) -> Eva:
    """As PE: attention of another class, norm before the blocks, pooling by attention."""
    settings = {"attn_type": "rope", "use_pre_transformer_norm": True, "use_rot_pos_emb": True, "global_pool": "map"}
    return _create_eva("vit_pe_of_tests", pretrained, **SIZES | settings | {"use_fc_norm": False} | kwargs)


@register_model
def vit_rope_mixed_of_tests(pretrained: bool = False, **kwargs: Any) -> Eva:
    """Learned rotations that differ between blocks, no learned positions, register tokens, a CLS token."""
    settings = {"use_abs_pos_emb": False, "use_rot_pos_emb": True, "rope_type": "mixed", "init_values": 1.0}
    settings |= {"num_reg_tokens": 2, "no_embed_class": True, "global_pool": "token"}
    return _create_eva("vit_rope_mixed_of_tests", pretrained, **SIZES | settings | kwargs)
