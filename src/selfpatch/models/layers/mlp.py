"""Multi-layer perceptrons of projectors and predictors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from selfpatch.models.layers.batch_norm import BatchNorm


def mlp(widths: Sequence[int], *, bias: bool = True, norm: bool = True, output_norm: bool = False) -> nn.Sequential:
    """Build linear layers with ReLU between them, [..., widths[0]] -> [..., widths[-1]].

    Args:
        widths: input width, hidden widths, output width.
        bias: give the linear layers biases.
        norm: add batch normalisation after each hidden layer.
        output_norm: add batch normalisation without weight and bias after the last layer.
    """
    parts: list[nn.Module] = []
    last = len(widths) - 2
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        parts.append(nn.Linear(inputs, outputs, bias=bias))
        if i < last:
            parts += [BatchNorm(outputs), nn.ReLU(inplace=True)] if norm else [nn.ReLU(inplace=True)]
        elif output_norm:
            parts.append(BatchNorm(outputs, affine=False))
    return nn.Sequential(*parts)
