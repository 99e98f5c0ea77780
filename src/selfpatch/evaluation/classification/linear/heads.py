"""Linear classifiers of the same features, trained at once, each with its own learning rate."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LinearHeads(nn.Module):
    """R linear layers as one, for one optimizer of learning rate 1.

        for each rate r:   SGD with momentum of w_r at rate r   (weights normal(0, 0.01), biases 0, as DINO's)

    is what SGD at rate 1 does with v_r = w_r / sqrt(r): the gradient by v_r is sqrt(r) times that by w_r, and a step of
    v_r moves w_r by sqrt(r) as much again. So one matrix product serves all rates.

    Features have the width F = `dim`, there are K = `num_classes` classes, and all heads share their initial weights.
    """

    roots: Tensor

    def __init__(self, dim: int, num_classes: int, rates: Sequence[float], *, seed: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        weight = torch.empty(num_classes, dim).normal_(std=0.01, generator=torch.Generator().manual_seed(seed))
        roots = torch.tensor(rates, dtype=torch.float64).sqrt().float()
        self.register_buffer("roots", roots, persistent=False)
        self.weight = nn.Parameter((weight / roots[:, None, None]).flatten(0, 1))  # [R * K, F]
        self.bias = nn.Parameter(torch.zeros(len(roots) * num_classes))

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits [B, R, K] of features [B, F]."""
        return F.linear(features, self.weight, self.bias).unflatten(1, (-1, self.num_classes)) * self.roots[:, None]

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the sum over heads of their mean cross-entropy, so that each gets the gradient it would get alone."""
        logits = self(features)  # [B, R, K]
        repeated = labels[:, None].expand(-1, logits.shape[1])
        return F.cross_entropy(logits.flatten(0, 1), repeated.flatten(), reduction="sum") / len(labels)
