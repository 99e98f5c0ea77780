"""DenseCL's contrast of corresponding positions (Wang et al., arXiv 2011.09157)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from selfpatch.losses.memory_bank import MemoryBank
from selfpatch.ops.contrast import info_nce, l2_normalize


class DenseContrastLoss(nn.Module):
    """InfoNCE of each position of one view with the position of the other view that looks most like it (eq. 2 and 3).

        for each image b, for each position i:
            match(i) = the position j with largest cos(f_s[b, i], f_t[b, j])
            loss += InfoNCE(q[b, i], k[b, match(i)], bank)
        bank takes in, for each image, the normalised mean of k over positions

    f are features of the backbone, q and k projections of them.

    Args:
        temp: softmax temperature of the cosine similarities.
    """

    def __init__(self, temp: float) -> None:
        super().__init__()
        self.temp = temp

    def forward(
        self, queries: Tensor, keys: Tensor, bank: MemoryBank, *, student_features: Tensor, teacher_features: Tensor
    ) -> Tensor:
        """Return the loss, a scalar: the mean over images and positions.

        Args:
            queries: [B, N, E] the student's projections of one view.
            keys: [B, M, E] the teacher's projections of another view; they take no gradient.
            bank: negatives of earlier steps.
            student_features: [B, N, D] what the queries are projected from.
            teacher_features: [B, M, D] what the keys are projected from.
        """
        with torch.no_grad():
            keys = keys.float()
            match = corresponding_positions(student_features, teacher_features)
            matched = l2_normalize(keys.take_along_dim(match[..., None], dim=1))
            bank.accumulate(l2_normalize(keys.mean(1)))
        return info_nce(l2_normalize(queries), matched, bank.keys, self.temp).mean()


@torch.no_grad()
def corresponding_positions(queries: Tensor, keys: Tensor) -> Tensor:
    """Return, for each query of an image, the index of the key with the largest cosine similarity.

    Args:
        queries: [B, N, D] features.
        keys: [B, M, D] features.

    Returns:
        [B, N] int64.
    """
    with torch.autocast(queries.device.type, enabled=False):
        similarity = l2_normalize(queries) @ l2_normalize(keys).mT  # [B, N, M]
    return similarity.argmax(-1)
