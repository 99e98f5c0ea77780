"""MoBY: MoCo's queues and BYOL's asymmetry (Xie et al., arXiv 2105.04553)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from selfpatch.core.types import EncoderOutput, Hyperparameters, Objective, Views
from selfpatch.losses.memory_bank import MemoryBank, check_bank_size
from selfpatch.models.layers.mlp import mlp
from selfpatch.ops.contrast import info_nce, l2_normalize


class MoBY(Objective):
    """The student's prediction of one view is to find the teacher's key of the other among keys of earlier batches:

        q1, q2 = predict(project_s(x1)), predict(project_s(x2))
        k1, k2 = project_t(x1), project_t(x2)                       all of norm 1
        loss = info_nce(q1, k2, queue2) + info_nce(q2, k1, queue1)
        queue1, queue2 take in k1, k2, and lose as many of their oldest

    Each view goes through the heads by itself, so that batch norms see one view at a time. Local crops are not looked
    at.

    Args:
        dim: width of the image token.
        batch_size: images a step, over all processes; divides `queue_size`.
        hidden: hidden width of projector and predictor (2 layers each).
        out_dim: width of queries and keys.
        queue_size: keys in each of the two queues, one a view.
    """

    loss_weights: ClassVar[Mapping[str, float]] = {"contrast": 1.0}

    def __init__(
        self,
        dim: int,
        batch_size: int,
        *,
        hidden_dim: int = 4096,
        out_dim: int = 256,
        queue_size: int = 4096,
        temp: float = 0.2,
    ) -> None:
        super().__init__()
        check_bank_size("moby.queue_size", queue_size, batch_size)
        self.temp = temp
        self._make_projector = partial(mlp, [dim, hidden_dim, out_dim])
        self.predictor = mlp([out_dim, hidden_dim, out_dim])
        self.queue1, self.queue2 = MemoryBank(queue_size, out_dim), MemoryBank(queue_size, out_dim)

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self._make_projector()}

    def forward(
        self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters
    ) -> dict[str, Tensor]:
        """`{"contrast": loss}`, the sum over both directions.

        Raises:
            ValueError: there are not exactly two global crops.
        """
        views.require_pair("MoBY")
        with torch.no_grad():
            key1, key2 = (l2_normalize(teacher.heads["projector"](x)) for x in teacher.image[:2])
        query1, query2 = (self.predictor(student.heads["projector"](x)) for x in student.image[:2])  # [B, E]
        loss = self._one_way(query1, key2, self.queue2) + self._one_way(query2, key1, self.queue1)
        self.queue1.accumulate(key1)
        self.queue2.accumulate(key2)
        return {"contrast": loss}

    def _one_way(self, queries: Tensor, keys: Tensor, queue: MemoryBank) -> Tensor:
        return info_nce(l2_normalize(queries), keys, queue.keys, self.temp).mean()
