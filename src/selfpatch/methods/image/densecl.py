"""DenseCL: MoCo-v2 for the image and, beside it, for each of its positions (Wang et al., arXiv 2011.09157)."""

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


class DenseCL(Objective):
    """The student's queries of the first view are to find the teacher's keys of the second among keys of earlier
    batches: one query for the image, as in MoCo-v2, and one for each position i of its grid (sections 3.3 and 3.4):

        q, k = project_s(x1), project_t(x2)                         all of norm 1
        contrast = info_nce(q, k, queue)
        for each position i:
            match(i) = the position j of the second view with largest cos(f_s(x1)[i], f_t(x2)[j])
            dense_contrast += info_nce(dense_project_s(x1)[i], dense_project_t(x2)[match(i)], dense_queue)
        queue takes in k, dense_queue the mean over positions of dense_project_t(x2), of norm 1

    f are the backbone's features. The weights of the two losses are 1 - lambda and lambda, with the paper's 0.5. Local
    crops are not looked at. Batch norms are over the global batch, so that nothing is shuffled between processes, as
    the released code does: `MoCoV2` says why.

    Args:
        dim: width of the tokens.
        batch_size: images a step, over all processes; divides `queue_size`.
        hidden: hidden width of the two projectors (2 layers each); None: as the tokens'.
        out_dim: width of queries and keys.
        queue_size: keys in each of the two queues.
    """

    loss_weights: ClassVar[Mapping[str, float]] = {"contrast": 0.5, "dense_contrast": 0.5}

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
        check_bank_size("densecl.queue_size", queue_size, batch_size)
        self.temp = temp
        self._make_projector = partial(mlp, [dim, hidden_dim or dim, out_dim], norm=False)
        self.queue = MemoryBank(queue_size, out_dim)
        self.dense_queue = MemoryBank(queue_size, out_dim)

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self._make_projector(), "dense_projector": self._make_projector()}

    def forward(
        self, student: EncoderOutput, teacher: EncoderOutput, views: Views, hp: Hyperparameters
    ) -> dict[str, Tensor]:
        """`{"contrast": loss, "dense_contrast": loss}`, the latter the mean over images and positions.

        Raises:
            ValueError: there are not exactly two global crops.
        """
        views.require_pair("DenseCL")
        return {
            "contrast": self._contrast(student, teacher),
            "dense_contrast": self._dense_contrast(student, teacher, views.batch_size),
        }

    def _contrast(self, student: EncoderOutput, teacher: EncoderOutput) -> Tensor:
        with torch.no_grad():
            keys = l2_normalize(teacher.heads["projector"](teacher.image[1]))  # [B, E]
        queries = l2_normalize(student.heads["projector"](student.image[0]))
        self.queue.accumulate(keys)
        return info_nce(queries, keys, self.queue.keys, self.temp).mean()

    def _dense_contrast(self, student: EncoderOutput, teacher: EncoderOutput, batch_size: int) -> Tensor:
        first = student.tokens_per_resolution[0].patches[:batch_size].flatten(1, 2)  # [B, N, D] of view 0
        second = teacher.tokens_per_resolution[0].patches[batch_size : 2 * batch_size].flatten(1, 2)
        with torch.no_grad():
            dense = teacher.heads["dense_projector"](second).float()  # [B, N, E]
            matched = dense.take_along_dim(corresponding_positions(first, second)[..., None], dim=1)
            keys = l2_normalize(matched)
            self.dense_queue.accumulate(l2_normalize(dense.mean(1)))
        queries = l2_normalize(student.heads["dense_projector"](first))
        return info_nce(queries, keys, self.dense_queue.keys, self.temp).mean()


@torch.no_grad()
def corresponding_positions(queries: Tensor, keys: Tensor) -> Tensor:
    """For each query of an image, the place of the key with the largest cosine similarity.

    Args:
        queries: [B, N, D].
        keys: [B, M, D].

    Returns:
        [B, N] int64.
    """
    with torch.autocast(queries.device.type, enabled=False):
        similarity = l2_normalize(queries) @ l2_normalize(keys).mT  # [B, N, M]
    return similarity.argmax(-1)
