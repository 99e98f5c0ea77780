"""MoBY: MoCo's queues and BYOL's asymmetry (Xie et al., arXiv 2105.04553)."""

import math
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import nn

from selfpatch.config.schema import settings
from selfpatch.core.types import EncoderOutput, Hyperparameters, Losses, Objective, Views
from selfpatch.losses.info_nce import InfoNCEConfig, InfoNCELoss
from selfpatch.losses.memory_bank import MemoryBank, check_bank_size
from selfpatch.models.layers.mlp import mlp


@settings
class MoBYConfig(InfoNCEConfig):
    """Settings of MoBY."""

    hidden_dim: PositiveInt = 4096
    """Width of the hidden layers of projector and predictor."""
    out_dim: PositiveInt = 256
    """Width of queries and keys."""
    queue_size: PositiveInt = 4096
    """Number of keys in each of the two memory banks, a multiple of the batch size."""


class MoBY(Objective):
    """`InfoNCELoss` between the student's prediction of each global crop and the teacher's key of the other.

        q1, q2 = predict(project_s(x1)), predict(project_s(x2))
        k1, k2 = project_t(x1), project_t(x2)
        loss = InfoNCE(q1, k2, queue2) + InfoNCE(q2, k1, queue1)

    Each view passes the heads by itself, so that batch norms see one view at a time. Local crops are not used.
    """

    Config = MoBYConfig
    loss_weights: ClassVar = {"contrast": 1.0}

    def __init__(self, dim: int, batch_size: int, config: MoBYConfig) -> None:
        super().__init__()
        check_bank_size("moby.queue_size", config.queue_size, batch_size)
        self.dim, self.config = dim, config
        self.loss = InfoNCELoss(config.temp)
        self.predictor = mlp([config.out_dim, config.hidden_dim, config.out_dim])
        self.queue1 = MemoryBank(config.queue_size, config.out_dim)
        self.queue2 = MemoryBank(config.queue_size, config.out_dim)

    def heads(self) -> dict[str, nn.Module]:
        """Return the projector: two layers with batch norm."""
        return {"projector": mlp([self.dim, self.config.hidden_dim, self.config.out_dim])}

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters) -> Losses:
        """Return `{"contrast": loss}`, the sum over both directions."""
        views.require_pair("MoBY")
        with torch.no_grad():
            key1, key2 = (teacher.heads["projector"](x) for x in teacher.image[:2])
        query1, query2 = (self.predictor(student.heads["projector"](x)) for x in student.image[:2])  # [B, E]
        return {"contrast": self.loss(query1, key2, self.queue2) + self.loss(query2, key1, self.queue1)}

    def uniform_losses(self, views: Views) -> dict[str, float]:
        """Return the log of the number of keys, the bank's and its own, for both directions."""
        return {"contrast": 2 * math.log(1 + self.config.queue_size)}
