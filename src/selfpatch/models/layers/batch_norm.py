"""Batch normalisation over the global batch, on any device; torch's SyncBatchNorm refuses CPU tensors."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfpatch.core.distributed import all_reduce_sum_with_gradient, is_distributed
from selfpatch.models.layers.deferred_state import DeferredState


class BatchNorm(DeferredState):
    """`nn.BatchNorm1d` over inputs [..., D] with the statistics of the global batch.

    Processes may pass different numbers of rows. Heads are used in training only and need no running statistics.
    Running statistics (optional, for evaluation) change at the end of a step: a failed step leaves no trace.

    Args:
        affine: learn a weight and a bias.
        running_statistics: keep torch's moving averages of mean and (unbiased) variance.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None

    def __init__(self, dim: int, *, affine: bool = True, running_statistics: bool = False) -> None:
        super().__init__()
        self.eps, self.momentum = 1e-5, 0.1
        self.frozen = False  # if True, the running statistics are used in training too, and do not change
        self.weight = nn.Parameter(torch.ones(dim)) if affine else None
        self.bias = nn.Parameter(torch.zeros(dim)) if affine else None
        self.register_buffer("running_mean", torch.zeros(dim) if running_statistics else None)
        self.register_buffer("running_var", torch.ones(dim) if running_statistics else None)
        self.register_buffer("num_batches_tracked", torch.tensor(0) if running_statistics else None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., D] over all but its last dimension."""
        return self._normalised(x.flatten(0, -2)).view_as(x)

    def _normalised(self, x: Tensor) -> Tensor:
        """Normalise x [n, D, ...] over all but dimension 1."""
        if self.running_mean is not None and (self.frozen or not self.training):
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        if is_distributed():
            return self._over_all_processes(x)
        if len(x) == 0:
            return x
        if self.running_mean is None:
            return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        # With momentum 1, torch writes the batch's own statistics without a second pass over the data.
        mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_mean)
        normed = F.batch_norm(x, mean, variance, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
        self.accumulated.append((mean, variance, 1))
        return normed

    def _over_all_processes(self, x: Tensor) -> Tensor:
        normed, mean, variance, rows = normalise_over_processes(x, self.weight, self.bias, self.eps)
        if self.running_mean is not None:
            self.accumulated.append((mean, variance, (rows > 0).long()))
        return normed

    @torch.no_grad()
    def update(self) -> None:
        """Move the running statistics by one batch after the other; those without rows on any process do not count."""
        for mean, variance, counts in self.accumulated:
            mean_so_far, variance_so_far, count = self.buffers()
            mean_so_far.lerp_(mean, self.momentum * counts)
            variance_so_far.lerp_(variance, self.momentum * counts)
            count += counts
        self.discard()


class BatchNorm2d(BatchNorm):
    """`BatchNorm` over feature maps [B, D, h, w] with running statistics, as ResNets use it."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, running_statistics=True)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [B, D, h, w] over images and positions."""
        return self._normalised(x)

    @classmethod
    def convert(cls, module: nn.Module) -> None:
        """Replace every `nn.BatchNorm2d` below a module, keeping parameters and statistics."""
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                new = cls(child.num_features)
                new.eps, new.momentum = child.eps, 0.1 if child.momentum is None else child.momentum
                new.load_state_dict(child.state_dict())
                setattr(module, name, new)
            else:
                cls.convert(child)


@torch.no_grad()
def ema_update_statistics(average: nn.Module, source: nn.Module, momentum: float, ok: Tensor | None = None) -> None:
    """Move the running statistics of `average` towards those of `source`, as `ema_update` moves parameters.

    It is for an average that encodes nothing in training, whose batch norms would stay as they are initialised.
    Arguments are those of `ema_update`.
    """
    share = 1 - momentum if ok is None else ok * (1 - momentum)
    for own, new in zip(average.modules(), source.modules(), strict=True):
        if isinstance(own, BatchNorm) and isinstance(new, BatchNorm) and own.running_mean is not None:
            for statistic, target in zip(own.changing()[:2], new.changing()[:2], strict=True):
                statistic.lerp_(target, share)


def normalise_over_processes(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalise x [n, D, ...] over all but dimension 1 of the global batch; n may differ between processes.

    Return the result, and the mean [D], the unbiased variance [D] and the number of global rows [] without gradient.
    Without rows, mean and variance are 0; of a single row, the variance is.
    """
    batch = [0, *range(2, x.ndim)]
    per_channel = (1, -1, *[1] * (x.ndim - 2))
    x32 = x.float()
    own_count = x32.new_full((1,), x.numel() // x.shape[1])
    totals = all_reduce_sum_with_gradient(torch.cat([x32.sum(batch), own_count]))
    rows = totals[-1].detach()
    count = rows.clamp(min=1.0)
    mean = totals[:-1] / count
    centred = x32 - mean.view(per_channel)
    variance = all_reduce_sum_with_gradient(centred.square().sum(batch)) / count
    normed = centred * torch.rsqrt(variance + eps).view(per_channel)
    if weight is not None and bias is not None:
        normed = torch.addcmul(bias.view(per_channel), normed, weight.view(per_channel))
    return normed.to(x.dtype), mean.detach(), variance.detach() * count / (count - 1).clamp(min=1.0), rows
