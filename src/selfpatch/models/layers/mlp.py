"""Projectors and predictors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from selfpatch.models.layers.batch_norm import BatchNorm


def mlp(widths: Sequence[int], *, bias: bool = True, norm: bool = True, output_norm: bool = False) -> nn.Sequential:
    """Linear layers with ReLU between them, over [..., widths[0]] -> [..., widths[-1]].

    Args:
        bias: of the linear layers.
        norm: batch normalisation after each hidden layer.
        output_norm: batch normalisation without weight and bias after the last layer.
    """
    parts: list[nn.Module] = []
    last = len(widths) - 2
    for i, (wide, narrow) in enumerate(pairwise(widths)):
        parts.append(nn.Linear(wide, narrow, bias=bias))
        if i < last:
            parts += [BatchNorm(narrow), nn.ReLU(inplace=True)] if norm else [nn.ReLU(inplace=True)]
        elif output_norm:
            parts.append(BatchNorm(narrow, affine=False))
    return nn.Sequential(*parts)
