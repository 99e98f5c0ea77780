"""MoCo-v2: contrast against a queue of keys, with a momentum encoder (Chen, Fan, Girshick, He, arXiv 2003.04297)."""

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


class MoCoV2(Objective):
    """The student's query of the first view is to find the teacher's key of the second among keys of earlier batches:

        q = project_s(x1)
        k = project_t(x2)                                           both of norm 1
        loss = info_nce(q, k, queue)
        queue takes in k, and loses as many of its oldest

    Local crops are not looked at.

    The released code shuffles the keys' images over the processes, as its batch norms see one process's share each, in
    which a query could tell its key by the share's statistics. Here batch norms are over the global batch, and in the
    backbone over both views, so that there is no share to tell: nothing is shuffled.

    Args:
        dim: width of the image token.
        batch_size: images a step, over all processes; divides `queue_size`.
        hidden: hidden width of the projector (2 layers); None: as the image token's.
        out_dim: width of queries and keys.
        queue_size: keys of earlier batches.
    """

    loss_weights: ClassVar[Mapping[str, float]] = {"contrast": 1.0}

    def __init__(
        self,
        dim: int,
        batch_size: int,
        *,
        hidden_dim: int | None = None,
        out_dim: int = 128,
        queue_size: int = 65536,
        temp: float = 0.2,
    ) -> None:
        super().__init__()
        check_bank_size("moco_v2.queue_size", queue_size, batch_size)
        self.temp = temp
        self._make_projector = partial(mlp, [dim, hidden_dim or dim, out_dim], norm=False)
        self.queue = MemoryBank(queue_size, out_dim)

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self._make_projector()}

    def forward(
        self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters
    ) -> dict[str, Tensor]:
        """`{"contrast": loss}`.

        Raises:
            ValueError: there are not exactly two global crops.
        """
        views.require_pair("MoCo-v2")
        with torch.no_grad():
            keys = l2_normalize(teacher.heads["projector"](teacher.image[1]))  # [B, E]
        queries = l2_normalize(student.heads["projector"](student.image[0]))
        self.queue.accumulate(keys)
        return {"contrast": info_nce(queries, keys, self.queue.keys, self.temp).mean()}
