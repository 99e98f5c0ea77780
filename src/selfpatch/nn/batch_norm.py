"""Batch normalisation over the global batch, on any device; torch's SyncBatchNorm refuses CPU tensors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from selfpatch.distributed import all_reduce_sum_with_gradient, is_distributed, world_size


class BatchNorm(nn.BatchNorm1d):
    """`nn.BatchNorm1d` over inputs [..., D] whose statistics, in training, are those of all processes together.

    Every process must bring the same number of rows.
    """

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        if not (self.training and is_distributed()):
            return super().forward(rows).view_as(x)
        wide = rows.float()
        count = len(rows) * world_size()
        mean = all_reduce_sum_with_gradient(wide.sum(0)) / count
        centred = wide - mean
        variance = all_reduce_sum_with_gradient(centred.square().sum(0)) / count
        self._track(mean.detach(), variance.detach() * count / max(count - 1, 1))
        normed = centred * torch.rsqrt(variance + self.eps)
        if self.affine:
            normed = torch.addcmul(self.bias, normed, self.weight)
        return normed.to(x.dtype).view_as(x)

    @torch.no_grad()
    def _track(self, mean: Tensor, unbiased_variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(unbiased_variance, momentum)
