"""MoCo-v3: contrast within the batch, with a momentum encoder (Chen, Xie, He, arXiv 2104.02057)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from selfpatch.core.distributed import all_gather, rank
from selfpatch.core.types import EncoderOutput, Hyperparameters, Objective, Views
from selfpatch.models.layers.mlp import mlp
from selfpatch.ops.contrast import batch_info_nce, l2_normalize


class MoCoV3(Objective):
    """The student's prediction of one view is to find the teacher's key of the other among the keys of the batch
    (algorithm 1 of the paper):

        q1, q2 = predict(project_s(x1)), predict(project_s(x2))
        k1, k2 = project_t(x1), project_t(x2)                       all of norm 1, keys of all processes
        loss = 2 temp (cross_entropy(q1 k2^T / temp, own) + cross_entropy(q2 k1^T / temp, own))

    Each view goes through the heads by itself, so that batch norms see one view at a time. Local crops are not looked
    at. The negatives of an accumulated step are those of each micro-batch, not of the whole batch.

    Args:
        dim: width of the image token.
        projector_hidden_dim, predictor_hidden_dim: hidden widths of projector (3 layers) and predictor (2 layers).
        out_dim: width of queries and keys.
    """

    loss_weights: ClassVar[Mapping[str, float]] = {"contrast": 1.0}

    def __init__(
        self,
        dim: int,
        *,
        projector_hidden_dim: int = 4096,
        out_dim: int = 256,
        predictor_hidden_dim: int = 4096,
        temp: float = 0.2,
    ) -> None:
        super().__init__()
        self.temp = temp
        widths = [dim, projector_hidden_dim, projector_hidden_dim, out_dim]
        self._make_projector = partial(mlp, widths, bias=False, output_norm=True)
        self.predictor = mlp([out_dim, predictor_hidden_dim, out_dim], bias=False, output_norm=True)

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self._make_projector()}

    def forward(
        self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters
    ) -> dict[str, Tensor]:
        """`{"contrast": loss}`, the sum over both directions.

        Raises:
            ValueError: there are not exactly two global crops.
        """
        views.require_pair("MoCo-v3")
        with torch.no_grad():
            key1, key2 = (l2_normalize(teacher.heads["projector"](x)) for x in teacher.image[:2])
        query1, query2 = (self.predictor(student.heads["projector"](x)) for x in student.image[:2])  # [B, E]
        return {"contrast": self._one_way(query1, key2) + self._one_way(query2, key1)}

    def _one_way(self, queries: Tensor, keys: Tensor) -> Tensor:
        keys_of_all = all_gather(keys).flatten(0, 1)
        queries = l2_normalize(queries)
        losses = batch_info_nce(queries, keys_of_all, rank() * len(keys), self.temp)
        # The factor keeps the size of gradients comparable over temperatures, as released.
        return 2 * self.temp * losses.mean()
