"""The network that is fine-tuned: a copy of the backbone, and a linear head."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from selfpatch.evaluation.classification.finetune.config import Token
from selfpatch.evaluation.finetuning import trainable_copy
from selfpatch.models.encoder import BranchEncoder, image_token


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
            self.backbone = trainable_copy(encoder.backbone, drop_path=drop_path)
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
