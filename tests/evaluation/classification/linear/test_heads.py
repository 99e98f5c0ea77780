"""Linear heads of several learning rates, trained at once."""

from __future__ import annotations

import torch
from torch import nn

from selfpatch.evaluation.classification.linear.heads import LinearHeads


def test_heads_trained_at_once_are_those_trained_one_by_one() -> None:
    """Against torch's SGD with momentum, each rate by itself."""
    rates = (0.01, 0.5, 3.0)
    heads = LinearHeads(6, 4, rates, seed=1)
    alone = [nn.Linear(6, 4) for _ in rates]
    for head in alone:
        head.weight.data.normal_(std=0.01, generator=torch.Generator().manual_seed(1))
        head.bias.data.zero_()
    together = torch.optim.SGD(heads.parameters(), lr=1.0, momentum=0.9)
    optimizers = [torch.optim.SGD(h.parameters(), lr=r, momentum=0.9) for h, r in zip(alone, rates, strict=True)]
    torch.manual_seed(0)
    for _ in range(10):
        features, labels = torch.randn(8, 6), torch.randint(4, (8,))
        together.zero_grad()
        heads.loss(features, labels).backward()
        together.step()
        for head, optimizer in zip(alone, optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(features), labels).backward()
            optimizer.step()
    features = torch.randn(5, 6)
    expected = torch.stack([head(features) for head in alone], dim=1)
    torch.testing.assert_close(heads(features), expected, rtol=1e-4, atol=1e-5)
