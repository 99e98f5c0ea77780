"""Mean and deviation of each channel of a frozen encoder's tokens, by which targets are standardised."""

import torch
from torch import Tensor

from selfpatch.core.distributed import all_reduce_mean
from selfpatch.models.layers.deferred_state import DeferredState


class ChannelStatistics(DeferredState):
    """Standardise tokens by the mean and the deviation of each channel in all earlier steps (as Theia's targets).

    The tokens of one frozen encoder share a large common part, which a student would learn first, and for long alone.
    Theia computes the statistics of the data set beforehand; here they are those of the training's own steps. The first
    step, which has none, leaves tokens as they are.

    Attributes:
        mean: [D] mean over all tokens so far.
        mean_square: [D] mean of their squares.
        num_steps: number of steps so far, an int64 scalar.
    """

    mean: Tensor
    mean_square: Tensor
    num_steps: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("mean_square", torch.ones(dim))
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        """Collect the tokens [..., D] of one micro-batch, and return them standardised, in float32."""
        x = tokens.detach().float()
        rows = x.flatten(0, -2)
        self.accumulated.append(torch.stack([rows.mean(0), rows.square().mean(0)]))
        return (x - self.mean) * (self.mean_square - self.mean.square()).clamp(min=1e-6).rsqrt()

    @torch.no_grad()
    def update(self) -> None:
        """Take in the tokens of the global batch."""
        if self.accumulated:
            mean, mean_square = all_reduce_mean(torch.stack(self.accumulated).mean(0))
            self.num_steps += 1
            for average, new in ((self.mean, mean), (self.mean_square, mean_square)):
                # The first step replaces the initial values.
                average.add_((new - average) / self.num_steps)
        self.discard()
