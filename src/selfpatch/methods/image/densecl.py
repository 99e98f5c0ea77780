"""DenseCL: MoCo-v2 for the image and for each of its positions (Wang et al., arXiv 2011.09157)."""

import math
from typing import ClassVar

import torch
from torch import nn

from selfpatch.core.types import EncoderOutput, Hyperparameters, Losses, Objective, Views
from selfpatch.losses.info_nce import DenseContrastLoss, InfoNCELoss, MoCoConfig
from selfpatch.losses.memory_bank import MemoryBank, check_bank_size
from selfpatch.models.layers.mlp import mlp


class DenseCL(Objective):
    """`InfoNCELoss` of the image and `DenseContrastLoss` of its positions, first global crop against second.

        contrast = InfoNCE(project_s(x1), project_t(x2), queue)
        dense_contrast = mean over positions i of InfoNCE(dense_s(x1)[i], dense_t(x2)[match(i)], dense_queue)

    The weights of the two losses are 1 - lambda and lambda, with the paper's 0.5. Local crops are not used. As in
    MoCo-v2 here, batch norms are over the global batch, so that nothing is shuffled between processes.
    """

    Config = MoCoConfig
    loss_weights: ClassVar = {"contrast": 0.5, "dense_contrast": 0.5}

    def __init__(self, dim: int, batch_size: int, config: MoCoConfig) -> None:
        super().__init__()
        check_bank_size("densecl.queue_size", config.queue_size, batch_size)
        self.dim, self.config = dim, config
        self.loss, self.dense_loss = InfoNCELoss(config.temp), DenseContrastLoss(config.temp)
        self.queue = MemoryBank(config.queue_size, config.out_dim)
        self.dense_queue = MemoryBank(config.queue_size, config.out_dim)

    def heads(self) -> dict[str, nn.Module]:
        """Return the two projectors: two layers without batch norm each."""
        widths = [self.dim, self.config.hidden_dim or self.dim, self.config.out_dim]
        return {name: mlp(widths, norm=False) for name in ("projector", "dense_projector")}

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters) -> Losses:
        """Return `{"contrast": loss, "dense_contrast": loss}`."""
        views.require_pair("DenseCL")
        B = views.batch_size
        first = student.tokens_per_resolution[0].patches[:B].flatten(1, 2)  # [B, N, D] of view 0
        second = teacher.tokens_per_resolution[0].patches[B : 2 * B].flatten(1, 2)
        with torch.no_grad():
            keys = teacher.heads["projector"](teacher.image[1])  # [B, E]
            dense_keys = teacher.heads["dense_projector"](second)  # [B, N, E]
        queries = student.heads["projector"](student.image[0])
        dense_queries = student.heads["dense_projector"](first)
        return {
            "contrast": self.loss(queries, keys, self.queue),
            "dense_contrast": self.dense_loss(
                dense_queries, dense_keys, self.dense_queue, student_features=first, teacher_features=second
            ),
        }

    def uniform_losses(self, views: Views) -> dict[str, float]:
        """Return the log of the number of keys, the bank's and its own, which is the same for image and positions."""
        return dict.fromkeys(self.loss_weights, math.log(1 + self.config.queue_size))
