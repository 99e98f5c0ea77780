"""Tiny networks with random weights, and the content of a released file of each format for them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from selfpatch.checkpoints.config import Side
from selfpatch.checkpoints.key_mapping import map_keys
from selfpatch.models.backbones.base import Backbone
from selfpatch.models.backbones.build import build_backbone
from selfpatch.models.backbones.config import AnyBackboneConfig, ConvNeXtConfig, ResNetConfig, SwinConfig, ViTConfig
from selfpatch.models.encoder import BranchEncoder

VIT = ViTConfig(embed_dim=128, depth=2, num_heads=2, patch_size=4, grid=3)
SWIN = SwinConfig(embed_dim=8, depths=(1, 2, 1), first_heads=2, window=2)
RESNET = ResNetConfig(depths=(1, 2, 1, 1), width=4)
CONVNEXT = ConvNeXtConfig(embed_dim=4, depths=(1, 2, 1, 1))
CONVNEXT_V2 = ConvNeXtConfig(embed_dim=4, depths=(1, 2, 1, 1), layer_scale=False, response_norm=True)

State = dict[str, Tensor]


def to_branch_keys(raw: Mapping[str, Tensor], side: Side = "teacher", source: str = "the state dict") -> State:
    """One network of a state dict in the keys of our `Branch`."""
    state, _ = map_keys(raw, side, source)
    return state


def random_backbone(config: AnyBackboneConfig, seed: int = 0) -> Backbone:
    """A backbone in evaluation mode whose weights and statistics all differ from their initial values."""
    backbone = build_backbone(config).eval()
    generator = torch.manual_seed(seed)
    with torch.no_grad():
        for name, tensor in backbone.state_dict().items():
            if not name.endswith("num_batches_tracked"):
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.add_(noise.abs() if name.endswith("running_var") else 0.1 * noise)
    return backbone


def trunk_state(backbone: Backbone) -> State:
    return {name: tensor.clone() for name, tensor in backbone.trunk.state_dict().items()}


def random_state(config: AnyBackboneConfig) -> State:
    """State of a network other than the wanted one."""
    return trunk_state(random_backbone(config, seed=99))


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def numbers(*names: str) -> State:
    """Tensors that loading ignores."""
    return {name: torch.ones(2, 3) for name in names}


def assert_same_features(encoder: BranchEncoder, expected: Backbone) -> None:
    side = 2 * expected.patch_size
    images = torch.randn(2, 3, side, 2 * side, generator=torch.manual_seed(1))
    reference = BranchEncoder(expected, None)
    torch.testing.assert_close(encoder.patches(images), reference.patches(images), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(encoder.image(images), reference.image(images), rtol=1e-5, atol=1e-6)


def swin_as_released(state: Mapping[str, Tensor]) -> State:
    """Keys of the original Swin code: patches are merged at the end of a stage, and tables are saved."""
    renamed = {
        re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", name): tensor
        for name, tensor in state.items()
    }
    index, mask = "layers.0.blocks.0.attn.relative_position_index", "layers.1.blocks.1.attn_mask"
    return {**renamed, **numbers(index, mask)}


def dinov2_as_released(state: Mapping[str, Tensor], chunks: int = 1) -> State:
    """Keys of DINOv2: a mask token, registers of another name with a position of the CLS token, blocks in chunks."""
    state = {re.sub(r"^blocks\.(\d+)\.", _chunked(chunks), name): tensor for name, tensor in state.items()}
    state["mask_token"] = torch.ones(1, state["cls_token"].shape[-1])
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        position = torch.full_like(state["cls_token"], 0.25)
        state["cls_token"] = state["cls_token"] - position
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], dim=1)
    return state


def convnext_as_released(state: Mapping[str, Tensor]) -> State:
    """Keys of the original ConvNeXts, of which V2 keeps four axes for its norm of responses."""
    table = {
        r"^stem\.": "downsample_layers.0.",
        r"^stages\.(\d)\.downsample\.": r"downsample_layers.\1.",
        r"\.blocks\.(\d+)\.": r".\1.",
        r"\.conv_dw\.": ".dwconv.",
        r"\.mlp\.fc": ".pwconv",
        r"\.mlp\.grn\.weight": ".grn.gamma",
        r"\.mlp\.grn\.bias": ".grn.beta",
    }
    released: State = {}
    for name, tensor in state.items():
        for ours, theirs in table.items():
            name = re.sub(ours, theirs, name)
        released[name] = tensor[None, None, None] if ".grn." in name else tensor
    return released


def convnext_of_timm(state: Mapping[str, Tensor]) -> State:
    """Keys of timm, of which the smaller networks have convolutions of one pixel for linear layers."""
    return {
        re.sub(r"^norm\.", "head.norm.", name): x[..., None, None] if re.search(r"mlp\.fc\d\.weight", name) else x
        for name, x in state.items()
    }


def _chunked(chunks: int) -> Callable[[re.Match[str]], str]:
    return lambda m: f"blocks.{m[1]}." if chunks == 1 else f"blocks.{int(m[1]) % chunks}.{m[1]}."


def swiglu_as_released(state: Mapping[str, Tensor]) -> State:
    return {n.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): tensor for n, tensor in state.items()}


def dinov3_as_released(state: Mapping[str, Tensor]) -> State:
    """Keys of DINOv3: periods of rotations, and masks of the keys' biases, which have any values."""
    released: State = {"mask_token": torch.ones(1, state["cls_token"].shape[-1])}
    for name, tensor in state.items():
        if ".mlp.fc1." in name and len(tensor) == 2 * state[f"{name.split('.mlp')[0]}.mlp.fc2.weight"].shape[1]:
            gate, up = tensor.chunk(2)
            released |= {name.replace("fc1", "w1"): gate.clone(), name.replace("fc1", "w2"): up.clone()}
            continue
        if name.endswith(".attn.qkv.bias"):
            mask = torch.ones(3, len(tensor) // 3)
            mask[1] = 0
            released[f"{name}_mask"] = mask.flatten()
        released[name] = tensor
    gated = any(".mlp.w1." in name for name in released)
    table = {"reg_token": "storage_tokens", "rope.": "rope_embed."} | ({".mlp.fc2.": ".mlp.w3."} if gated else {})
    for ours, theirs in table.items():
        released = {name.replace(ours, theirs): tensor for name, tensor in released.items()}
    return released


def hugging_face(state: Mapping[str, Tensor]) -> State:
    """State as `ViTModel.save_pretrained` writes it."""
    table = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        ".norm1": ".layernorm_before",
        ".norm2": ".layernorm_after",
        ".attn.proj": ".attention.output.dense",
        ".mlp.fc1": ".intermediate.dense",
        ".mlp.fc2": ".output.dense",
        "blocks.": "encoder.layer.",
    }
    renamed: State = {}
    for name, tensor in state.items():
        name = "layernorm" + name.removeprefix("norm") if name.startswith("norm.") else name
        for timm_name, released_name in table.items():
            name = name.replace(timm_name, released_name)
        if ".attn.qkv." in name:
            for part, value in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = value
        else:
            renamed[name] = tensor
    return renamed


IBOT_HEAD = {
    **numbers("head.mlp.0.weight", "head.mlp.0.bias", "head.last_layer.weight_g", "head.last_layer.weight_v"),
    **{f"head.last_layer2.weight_{x}": torch.ones(2, 3) for x in "gv"},
}


def without_counts(state: Mapping[str, Tensor]) -> State:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}


FORMS: dict[str, tuple[AnyBackboneConfig, Callable[[State], Any], list[str]]] = {
    # name: (config, the trunk's state under timm's names -> what the file holds, some names that are left out)
    "ibot, both sides": (
        VIT,
        lambda t: {
            "student": prefixed("module.", {**prefixed("backbone.", random_state(VIT)), **IBOT_HEAD}),
            "teacher": {**prefixed("backbone.", t), **IBOT_HEAD},
            "epoch": 3,
        },
        ["heads.image.mlp.0.weight", "heads.image.last_layer.weight_v", "head.last_layer2.weight_v"],
    ),
    "ibot, backbone alone": (
        VIT,
        lambda t: {"state_dict": {**t, "masked_embed": torch.ones(1, 128)}},
        ["backbone.mask_token"],
    ),
    "ibot, swin": (
        SWIN,
        lambda t: {"state_dict": {**swin_as_released(t), "masked_embed": torch.ones(1, 8)}},
        ["backbone.mask_token", "layers.0.blocks.0.attn.relative_position_index"],
    ),
    "moco v3, vit": (
        VIT,
        lambda t: {
            "arch": "vit_small",
            "state_dict": {
                **prefixed("module.base_encoder.", random_state(VIT)),
                **prefixed("module.momentum_encoder.", t),
                **numbers("module.base_encoder.head.0.weight", "module.momentum_encoder.head.0.weight"),
                **numbers("module.momentum_encoder.head.1.running_mean", "module.predictor.0.weight"),
            },
        },
        [
            "module.momentum_encoder.head.0.weight",
            "module.momentum_encoder.head.1.running_mean",
            "module.predictor.0.weight",
        ],
    ),
    "moco v3, resnet": (
        RESNET,
        lambda t: {
            "state_dict": {
                **prefixed("module.base_encoder.", random_state(RESNET)),
                **prefixed("module.momentum_encoder.", t),
                **numbers("module.momentum_encoder.fc.0.weight", "module.predictor.0.weight"),
            }
        },
        ["module.momentum_encoder.fc.0.weight", "module.predictor.0.weight"],
    ),
    "moby, swin": (
        SWIN,
        lambda t: {
            "model": {
                **prefixed("encoder.", swin_as_released(random_state(SWIN))),
                **prefixed("encoder_k.", swin_as_released(t)),
                **numbers("projector.linear_out.weight", "projector_k.linear_hidden.1.weight"),
                **numbers("predictor.linear_out.bias", "queue1", "queue2", "queue_ptr"),
            }
        },
        [
            "encoder_k.layers.0.blocks.0.attn.relative_position_index",
            "encoder_k.layers.1.blocks.1.attn_mask",
            "projector.linear_out.weight",
            "projector_k.linear_hidden.1.weight",
            "predictor.linear_out.bias",
            "queue1",
            "queue2",
            "queue_ptr",
        ],
    ),
    "moby, deit": (
        VIT,
        lambda t: {
            "model": {
                **prefixed("encoder.", random_state(VIT)),
                **prefixed("encoder_k.", t),
                **numbers("projector_k.linear_out.weight", "queue_ptr"),
            }
        },
        ["projector_k.linear_out.weight", "queue_ptr"],
    ),
    "swin, supervised": (
        SWIN,
        lambda t: {"model": {**swin_as_released(t), **numbers("head.weight", "head.bias")}},
        ["head.weight", "head.bias", "layers.1.blocks.1.attn_mask"],
    ),
    "swin, timm": (SWIN, lambda t: {**t, **numbers("head.fc.weight")}, ["head.fc.weight"]),
    "convnext": (
        CONVNEXT,
        lambda t: {"model": {**convnext_as_released(t), **numbers("head.weight", "head.bias")}},
        ["head.weight", "head.bias"],
    ),
    "convnext v2": (CONVNEXT_V2, lambda t: {"model": convnext_as_released(t)}, []),
    "convnext, dinov3": (
        CONVNEXT,
        lambda t: convnext_as_released(t) | {f"norms.3.{name}": t[f"norm.{name}"] for name in ("weight", "bias")},
        ["norms.3.weight", "norms.3.bias"],
    ),
    "convnext, timm": (CONVNEXT, lambda t: {**convnext_of_timm(t), **numbers("head.fc.weight")}, ["head.fc.weight"]),
    "convnext v2, dino": (
        CONVNEXT_V2,
        lambda t: {
            "student": prefixed("module.backbone.", random_state(CONVNEXT_V2)),
            "teacher": {**prefixed("backbone.", t), **numbers("head.mlp.0.weight")},
        },
        ["heads.image.mlp.0.weight"],
    ),
    "moco v2": (
        RESNET,
        lambda t: {
            "state_dict": {
                **prefixed("module.encoder_q.", t),
                **numbers("module.encoder_q.fc.0.weight", "module.encoder_q.fc.2.bias"),
                **numbers("module.queue", "module.queue_ptr"),
            }
        },
        [
            "module.encoder_q.fc.0.weight",
            "module.encoder_q.fc.2.bias",
            "module.queue",
            "module.queue_ptr",
        ],
    ),
    "swav": (
        RESNET,
        lambda t: prefixed(
            "module.",
            {**t, **numbers("projection_head.0.weight", "projection_head.1.running_var", "prototypes.weight")},
        ),
        ["module.projection_head.0.weight", "module.projection_head.1.running_var", "module.prototypes.weight"],
    ),
    "densecl, backbone alone": (RESNET, lambda t: {"state_dict": without_counts(t), "author": "DenseCL"}, []),
    "densecl, all of mmselfsup": (
        RESNET,
        lambda t: {
            "meta": {"epoch": 200},
            "state_dict": {
                **prefixed("backbone.", random_state(RESNET)),
                **prefixed("encoder_q.0.", random_state(RESNET)),
                **prefixed("encoder_k.0.", t),
                **numbers("queue", "queue_ptr", "queue2", "queue2_ptr", "neck.mlp.0.weight"),
                **numbers("encoder_q.1.mlp.0.weight", "encoder_k.1.mlp2.2.bias"),
            },
        },
        ["queue", "queue_ptr", "queue2", "queue2_ptr", "encoder_k.1.mlp2.2.bias"],
    ),
    "densecl, backbone and neck": (
        RESNET,
        lambda t: {"state_dict": {**prefixed("backbone.", t), **numbers("neck.mlp.0.weight", "queue")}},
        ["neck.mlp.0.weight", "queue"],
    ),
    "resim": (
        RESNET,
        lambda t: {
            "state_dict": {
                **prefixed("module.encoder_q.", t),
                **numbers("module.encoder_q.fpn_lateral5.weight", "module.encoder_q.fpn_output3.bias"),
                **numbers("module.encoder_q.fc.0.weight", "module.queue"),
            }
        },
        ["module.encoder_q.fpn_lateral5.weight", "module.encoder_q.fpn_output3.bias", "module.queue"],
    ),
    "detco": (RESNET, lambda t: {"state_dict": t}, []),
    "torchvision": (RESNET, lambda t: {**t, **numbers("fc.weight", "fc.bias")}, ["fc.weight", "fc.bias"]),
    "vissl": (
        RESNET,
        lambda t: {
            "classy_state_dict": {"base_model": {"model": {"trunk": prefixed("_feature_blocks.", t), "heads": {}}}}
        },
        [],
    ),
    "leopart": (
        VIT,
        lambda t: {
            "state_dict": {
                **prefixed("model.", random_state(VIT)),
                **prefixed("teacher.", t),
                **numbers("model.prototypes.weight", "teacher.projection_head.0.weight", "teacher.prototypes.weight"),
            }
        },
        ["teacher.projection_head.0.weight", "teacher.prototypes.weight"],
    ),
    "leopart, backbone alone": (
        VIT,
        lambda t: prefixed("model.", {**t, **numbers("projection_head.0.weight", "prototypes.weight")}),
        ["model.projection_head.0.weight", "model.prototypes.weight"],
    ),
    "lightning": (
        VIT,
        lambda t: {"state_dict": {**prefixed("model.backbone.", t), **numbers("model.head.weight")}},
        ["model.head.weight"],
    ),
    "dinov2": (replace(VIT, layer_scale=True), dinov2_as_released, ["backbone.mask_token"]),
    "dinov2 with registers": (
        replace(VIT, layer_scale=True, num_registers=4, position_embedding="size"),
        dinov2_as_released,
        ["backbone.mask_token"],
    ),
    "dinov2, gated": (
        replace(VIT, layer_scale=True, mlp="swiglu"),
        lambda t: swiglu_as_released(dinov2_as_released(t, chunks=2)),
        ["backbone.mask_token"],
    ),
    "dinov2, while training": (
        replace(VIT, layer_scale=True),
        lambda t: {
            "teacher": {
                **prefixed("backbone.", dinov2_as_released(t, chunks=2)),
                **numbers("dino_head.mlp.0.weight", "dino_head.last_layer.parametrizations.weight.original1"),
                **numbers("ibot_head.mlp.0.weight"),
            }
        },
        ["heads.image.mlp.0.weight", "heads.image.last_layer.weight_v", "ibot_head.mlp.0.weight"],
    ),
    "dinov2, all of training": (
        replace(VIT, layer_scale=True, num_registers=2, position_embedding="size"),
        lambda t: {
            "model": {
                **prefixed("teacher.backbone.", dinov2_as_released(t, chunks=2)),
                **prefixed("student.backbone.", dinov2_as_released(t, chunks=2)),
                **numbers("student.dino_head.mlp.0.weight", "teacher.dino_head.mlp.0.weight", "dino_loss.center"),
            }
        },
        ["heads.image.mlp.0.weight", "dino_loss.center"],
    ),
    "dinov3": (
        replace(VIT, rope=True, grid=64, layer_scale=True, num_registers=4),
        dinov3_as_released,
        ["backbone.mask_token"],
    ),
    "dinov3, gated, with norms of local crops": (
        replace(VIT, rope=True, grid=64, layer_scale=True, num_registers=4, mlp="swiglu", mlp_width=256),
        lambda t: {**dinov3_as_released(t), **numbers("local_cls_norm.weight")},
        ["local_cls_norm.weight"],
    ),
    "vit, timm": (VIT, lambda t: {**t, **numbers("head.weight", "head.bias")}, ["head.weight", "head.bias"]),
    "vit, timm, pooled": (
        replace(VIT, class_token=False),
        lambda t: {**{re.sub(r"^norm\.", "fc_norm.", n): x for n, x in t.items()}, **numbers("head.weight")},
        ["head.weight"],
    ),
    "mae, with its decoder": (
        VIT,
        lambda t: {
            "model": {
                **t,
                "mask_token": torch.ones(1, 1, 8),
                **numbers("decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.norm1.weight"),
            }
        },
        ["mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.norm1.weight"],
    ),
    "hugging face": (
        VIT,
        lambda t: prefixed("vit.", {**hugging_face(t), **numbers("pooler.dense.weight")}),
        ["vit.pooler.dense.weight"],
    ),
}
