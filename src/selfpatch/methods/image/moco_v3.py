"""MoCo-v3: contrast within the batch, with a momentum encoder (Chen, Xie, He, arXiv 2104.02057)."""

import math
from typing import ClassVar

import torch
from pydantic import PositiveInt
from torch import nn

from selfpatch.config.schema import settings
from selfpatch.core.distributed import world_size
from selfpatch.core.types import EncoderOutput, Hyperparameters, Losses, Objective, Views
from selfpatch.losses.info_nce import InfoNCEConfig, InfoNCELoss
from selfpatch.models.layers.mlp import mlp


@settings
class MoCoV3Config(InfoNCEConfig):
    """Settings of MoCo-v3."""

    projector_hidden_dim: PositiveInt = 4096
    """Width of the two hidden layers of the projector."""
    predictor_hidden_dim: PositiveInt = 4096
    """Width of the hidden layer of the predictor."""
    out_dim: PositiveInt = 256
    """Width of queries and keys."""


class MoCoV3(Objective):
    """`InfoNCELoss` within the batch, between the student's prediction of each global crop and the teacher's other.

        q1, q2 = predict(project_s(x1)), predict(project_s(x2))
        k1, k2 = project_t(x1), project_t(x2)                       keys of all processes
        loss = 2 temp (InfoNCE(q1, k2) + InfoNCE(q2, k1))           algorithm 1 of the paper

    Each view passes the heads by itself, so that batch norms see one view at a time. Local crops are not used. The
    negatives of an accumulated step come from its micro-batch.
    """

    Config = MoCoV3Config
    loss_weights: ClassVar = {"contrast": 1.0}

    def __init__(self, dim: int, config: MoCoV3Config) -> None:
        super().__init__()
        self.dim, self.config = dim, config
        self.loss = InfoNCELoss(config.temp)
        widths = [config.out_dim, config.predictor_hidden_dim, config.out_dim]
        self.predictor = mlp(widths, bias=False, output_norm=True)

    def heads(self) -> dict[str, nn.Module]:
        """Return the projector: three layers without biases, with batch norm after each."""
        hidden_dim = self.config.projector_hidden_dim
        return {"projector": mlp([self.dim, hidden_dim, hidden_dim, self.config.out_dim], bias=False, output_norm=True)}

    def forward(self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters) -> Losses:
        """Return `{"contrast": loss}`, the sum over both directions."""
        views.require_pair("MoCo-v3")
        with torch.no_grad():
            key1, key2 = (teacher.heads["projector"](x) for x in teacher.image[:2])
        query1, query2 = (self.predictor(student.heads["projector"](x)) for x in student.image[:2])  # [B, E]
        # The factor keeps the size of gradients comparable over temperatures, as released.
        scale = 2 * self.config.temp
        return {"contrast": scale * self.loss(query1, key2) + scale * self.loss(query2, key1)}

    def uniform_losses(self, views: Views) -> dict[str, float]:
        """Return the scaled log of the number of keys in the global batch, for both directions."""
        return {"contrast": 4 * self.config.temp * math.log(views.batch_size * world_size())}
