"""InfoNCE between queries and keys: with a memory bank (MoCo), within the batch (MoCo-v3), of positions (DenseCL)."""

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from selfpatch.config.schema import settings
from selfpatch.core.distributed import all_gather, rank
from selfpatch.losses.memory_bank import MemoryBank
from selfpatch.ops.contrast import batch_info_nce, info_nce, l2_normalize


@settings
class InfoNCEConfig:
    """Settings of contrastive losses."""

    temp: PositiveFloat = 0.2
    """Softmax temperature of the cosine similarities."""


@settings
class MoCoConfig(InfoNCEConfig):
    """Settings of momentum contrast with a memory bank; the defaults are MoCo-v2's."""

    hidden_dim: PositiveInt | None = None
    """Width of the hidden layers of the heads. If None, the width of the tokens."""
    out_dim: PositiveInt = 128
    """Width of queries and keys."""
    queue_size: PositiveInt = 65536
    """Number of keys in a memory bank, a multiple of the batch size."""


class InfoNCELoss(nn.Module):
    """Contrast of each query with its own key and with negatives; all are normalised to length 1.

        loss = mean over i of -log( exp(q_i . k_i / temp) / (exp(q_i . k_i / temp) + sum_j exp(q_i . n_j / temp)) )

    With a memory bank, the negatives n are keys of earlier steps, and the bank takes in k once the step is over (MoCo,
    arXiv 1911.05722, eq. 1). Without one, they are the other keys of the global batch (MoCo-v3, arXiv 2104.02057).

    Example:
        >>> criterion, bank = InfoNCELoss(temp=0.2), MemoryBank(65536, 128)
        >>> loss = criterion(queries, keys, bank)
        >>> loss.backward(), optimizer.step(), bank.update()

    Args:
        temp: softmax temperature of the cosine similarities.
    """

    def __init__(self, temp: float) -> None:
        super().__init__()
        self.temp = temp

    def forward(self, queries: Tensor, keys: Tensor, bank: MemoryBank | None = None) -> Tensor:
        """Return the loss, a scalar.

        Args:
            queries: [B, E] of the student.
            keys: [B, E] of the teacher, one for each query; they take no gradient.
            bank: negatives of earlier steps. If None, the batch's own keys.
        """
        queries, keys = l2_normalize(queries), l2_normalize(keys.detach())
        if bank is None:
            batch_keys = all_gather(keys).flatten(0, 1)
            return batch_info_nce(queries, batch_keys, rank() * len(keys), self.temp).mean()
        bank.accumulate(keys)
        return info_nce(queries, keys, bank.keys, self.temp).mean()


class DenseContrastLoss(nn.Module):
    """InfoNCE of each position of one view with the position of the other view that looks most like it.

        for each image b, for each position i:
            match(i) = the position j with largest cos(f_s[b, i], f_t[b, j])
            loss += InfoNCE(q[b, i], k[b, match(i)], bank)
        bank takes in, for each image, the normalised mean of k over positions

    f are features of the backbone, q and k projections of them (DenseCL, Wang et al., arXiv 2011.09157, eq. 2 and 3).

    Example:
        >>> criterion, bank = DenseContrastLoss(temp=0.2), MemoryBank(65536, 128)
        >>> loss = criterion(queries, keys, bank, student_features=patches, teacher_features=teacher_patches)
        >>> loss.backward(), optimizer.step(), bank.update()

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
    """Return, for each query of [B, N, D] features, the index [B, N] of the most similar key of [B, M, D] by cosine."""
    with torch.autocast(queries.device.type, enabled=False):
        similarity = l2_normalize(queries) @ l2_normalize(keys).mT  # [B, N, M]
    return similarity.argmax(-1)
