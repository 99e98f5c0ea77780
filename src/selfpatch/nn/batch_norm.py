"""Batch normalisation over the global batch, on any device; torch's SyncBatchNorm refuses CPU tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from selfpatch.distributed import all_reduce_sum_with_gradient, is_distributed, world_size


class BatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` over inputs [..., D] by the statistics of the batch, all processes together.

    Heads are used in training only: there are no running statistics, which a step that fails could spoil. Every process
    must bring the same number of rows.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        if not is_distributed():
            return super().forward(rows).view_as(x)
        wide = rows.float()
        count = len(rows) * world_size()
        mean = all_reduce_sum_with_gradient(wide.sum(0)) / count
        centred = wide - mean
        variance = all_reduce_sum_with_gradient(centred.square().sum(0)) / count
        normed = torch.addcmul(self.bias, centred * torch.rsqrt(variance + self.eps), self.weight)
        return normed.to(x.dtype).view_as(x)
