"""The network that is fine-tuned: a copy of the backbone, and a linear head."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from selfpatch.evaluation.finetune.presets import Token
from selfpatch.nn.backbones import build_backbone
from selfpatch.nn.branch import BranchEncoder, image_token

NOT_DECAYED = ("pos_embed", "cls_token", "reg_token", "relative_position_bias_table", "pool.query")
"""Ends of the names of tokens and positions, which weight decay is not for, as timm has it."""


class Classifier(nn.Module):
    """Images -> logits.

    Args:
        encoder: what is copied; it stays as it is.
        token: as `Preset.token`.
        seed: of the head.
    """

    def __init__(
        self, encoder: BranchEncoder, num_classes: int, *, token: Token, drop_path: float, head_std: float, seed: int
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # the fresh weights of the copy are overwritten at once
            self.backbone = build_backbone(encoder.backbone.shape, drop_path=drop_path)
        state = encoder.backbone.state_dict()
        state.pop("mask_token", None)  # nothing is masked here
        self.backbone.load_state_dict(state)
        self.pool = copy.deepcopy(encoder.pool) if token == "image" else None
        self.norm = nn.LayerNorm(encoder.dim, eps=1e-6) if token == "mean" else None
        self.head = nn.Linear(encoder.dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=head_std, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.head.bias)
        self.requires_grad_(True)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised [B, C, H, W] -> [B, K]."""
        tokens = self.backbone(images)
        if self.norm is not None:
            return self.head(self.norm(tokens.raw_patches.mean((1, 2))))
        return self.head(image_token(tokens, self.pool))

    def parameter_groups(self, lr: float, *, layer_decay: float, weight_decay: float) -> list[dict[str, Any]]:
        """For an optimizer: the layers, each with its learning rate, with and without weight decay.

        layer l of L: lr * layer_decay^(L + 1 - l); the embedding is layer 0, and all above the last block L + 1
        """
        top = self.backbone.num_layers + 1
        groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            part, _, inner = name.partition(".")
            layer = self.backbone.layer_of(inner) if part == "backbone" else top
            decayed = parameter.ndim > 1 and not name.endswith(NOT_DECAYED)
            groups.setdefault((layer, decayed), []).append(parameter)
        return [
            {"params": some, "lr": lr * layer_decay ** (top - layer), "weight_decay": weight_decay if decayed else 0.0}
            for (layer, decayed), some in sorted(groups.items(), key=lambda item: item[0])
        ]
