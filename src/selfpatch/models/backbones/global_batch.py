"""Layers that see the global batch while several processes train, exchanged for torch's and timm's from outside."""

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from selfpatch.core.distributed import rows_of_global_draw
from selfpatch.models.layers.batch_norm import normalise_over_processes


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with the statistics of the global batch, on any device."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [B, D, h, w] over images and positions."""
        if not self.training or self.running_mean is None or self.running_var is None:
            return super().forward(x)
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        normed, mean, variance, _ = normalise_over_processes(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
            self.num_batches_tracked += 1
        return normed


class GlobalDropout2d(nn.Dropout2d):
    """`nn.Dropout2d` with the random numbers of the global batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Set channels of maps [B, D, h, w] to 0."""
        return _dropped(x, self.p, (x.shape[1], 1, 1)) if self.training else x


class GlobalDropPath(DropPath):
    """timm's `DropPath` with the random numbers of the global batch."""

    def forward(self, x: Tensor) -> Tensor:
        """Set samples of x [B, ...] to 0."""
        return _dropped(x, self.drop_prob, (1,) * (x.ndim - 1)) if self.training else x


def _dropped(x: Tensor, rate: float, shape: tuple[int, ...]) -> Tensor:
    if not rate:
        return x
    kept = 1 - rate
    return x * rows_of_global_draw(lambda rows: x.new_empty(rows, *shape).bernoulli_(kept), len(x)).div_(kept)


GLOBAL_LAYERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: GlobalBatchNorm2d,
    nn.Dropout2d: GlobalDropout2d,
    DropPath: GlobalDropPath,
}


def use_global_batch(module: nn.Module) -> None:
    """Exchange the layers of `GLOBAL_LAYERS` below a module; parameters, buffers and names stay.

    All processes then draw from one random state, and each must pass equally many samples.
    """
    for part in module.modules():
        if type(part) in GLOBAL_LAYERS:
            part.__class__ = GLOBAL_LAYERS[type(part)]
