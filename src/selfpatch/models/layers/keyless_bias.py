"""Linear layer to queries, keys and values without a bias of keys."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class KeylessBias(nn.Linear):
    """Projection to queries, keys and values whose key third has no bias (DINOv3); its entries are kept, but unused.

    Without rotation a bias of the keys would change nothing.
    """

    def used_bias(self) -> Tensor:
        """Return the bias [3 * D] with zeros for the keys."""
        query, key, value = self.bias.chunk(3)
        return torch.cat([query, torch.zeros_like(key), value])

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., D] to [..., 3 * D]."""
        return F.linear(x, self.weight, self.used_bias())


def used_bias(linear: nn.Linear) -> Tensor | None:
    """Return the bias [E] that a linear layer adds to its product."""
    return linear.used_bias() if isinstance(linear, KeylessBias) else linear.bias
