"""Multi-layer perceptrons of projectors, predictors and heads."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from selfpatch.models.layers.batch_norm import BatchNorm


def mlp(
    widths: Sequence[int], *, bias: bool = True, norm: bool = True, output_norm: bool = False, gelu: bool = False
) -> nn.Sequential:
    """Build linear layers with an activation between them, [..., widths[0]] -> [..., widths[-1]].

    Args:
        widths: input width, hidden widths, output width.
        bias: give the linear layers biases.
        norm: add batch normalisation after each hidden layer.
        output_norm: add batch normalisation without weight and bias after the last layer.
        gelu: put GELU instead of ReLU between the layers.
    """
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(widths[:-1]):
        parts.append(nn.Linear(inputs, outputs, bias=bias))
        if norm:
            parts.append(BatchNorm(outputs))
        parts.append(nn.GELU() if gelu else nn.ReLU(inplace=True))
    parts.append(nn.Linear(widths[-2], widths[-1], bias=bias))
    if output_norm:
        parts.append(BatchNorm(widths[-1], affine=False))
    return nn.Sequential(*parts)
