"""The fine-tuned network: a copy of the backbone, and a linear head."""

import copy

import torch
from torch import Tensor, nn

from selfpatch.evaluation.classification.finetune.config import FinetuneConfig
from selfpatch.evaluation.finetuning import trainable_copy
from selfpatch.models.encoder import BranchEncoder, image_token


class Classifier(nn.Module):
    """A copy of an encoder's network with a linear head of K classes, from images to logits."""

    def __init__(self, encoder: BranchEncoder, num_classes: int, config: FinetuneConfig) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):  # the fresh weights of the copy are overwritten at once
            self.backbone = trainable_copy(encoder.backbone, drop_path=config.drop_path)
        self.pool = copy.deepcopy(encoder.pool) if config.token == "image" else None
        self.norm = nn.LayerNorm(encoder.dim, eps=1e-6) if config.token == "mean" else None
        self.head = nn.Linear(encoder.dim, num_classes)
        generator = torch.Generator().manual_seed(config.seed)
        nn.init.trunc_normal_(self.head.weight, std=config.head_std, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.requires_grad_(True)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [B, K] of normalised images [B, C, H, W]."""
        tokens = self.backbone(images)
        if self.norm is not None:
            return self.head(self.norm(tokens.raw_patches.mean((1, 2))))
        return self.head(image_token(tokens, self.pool))
