"""MoCo-v2: contrast against a queue of keys, with a momentum encoder (Chen, Fan, Girshick, He, arXiv 2003.04297)."""

import math
from typing import ClassVar

import torch
from torch import nn

from selfpatch.core.types import EncoderOutput, Hyperparameters, Losses, Objective, Views
from selfpatch.losses.info_nce import InfoNCELoss, MoCoConfig
from selfpatch.losses.memory_bank import MemoryBank, check_bank_size
from selfpatch.models.layers.mlp import mlp


class MoCoV2(Objective):
    """`InfoNCELoss` between the student's first and the teacher's second global crop, with a memory bank.

        q, k = project_s(x1), project_t(x2)
        loss = InfoNCE(q, k, queue)

    Local crops are not used.

    The released code shuffles the keys' images over the processes, because its batch norms see the share of one
    process, whose statistics could give a key away. Here batch norms are over the global batch, and in the backbone
    over both views, so that nothing needs to be shuffled.
    """

    Config = MoCoConfig
    loss_weights: ClassVar = {"contrast": 1.0}

    def __init__(self, dim: int, batch_size: int, config: MoCoConfig) -> None:
        super().__init__()
        check_bank_size("moco_v2.queue_size", config.queue_size, batch_size)
        self.dim, self.config = dim, config
        self.loss = InfoNCELoss(config.temp)
        self.queue = MemoryBank(config.queue_size, config.out_dim)

    def heads(self) -> dict[str, nn.Module]:
        """Return the projector: two layers without batch norm."""
        return {"projector": mlp([self.dim, self.config.hidden_dim or self.dim, self.config.out_dim], norm=False)}

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters) -> Losses:
        """Return `{"contrast": loss}`."""
        views.require_pair("MoCo-v2")
        with torch.no_grad():
            keys = teacher.heads["projector"](teacher.image[1])  # [B, E]
        queries = student.heads["projector"](student.image[0])
        return {"contrast": self.loss(queries, keys, self.queue)}

    def uniform_losses(self, views: Views) -> dict[str, float]:
        """Return the log of the number of keys, the bank's and its own."""
        return {"contrast": math.log(1 + self.config.queue_size)}
