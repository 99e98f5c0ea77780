"""Linear layers that recompute their input in the backward pass from tensors that are stored anyway.

The output of a layer norm or GELU costs little to compute and much to store. A transformer block stores 16 widths for
each token (two inputs of norms, their outputs, queries, keys and values, the output of attention, both sides of the
GELU); six of these are recomputed here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from selfpatch.core.reference import fast_path_of


def norm_linear_reference(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Compute linear(layer_norm(x)).

    Args:
        x: [..., D].
        norm_weight: [D].
        norm_bias: [D].
        eps: epsilon of the layer norm.
        weight: [E, D].
        bias: [E].

    Returns:
        [..., E].
    """
    return F.linear(F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps), weight, bias)


@fast_path_of(norm_linear_reference)
def norm_linear(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Compute `norm_linear_reference`, storing only x and each token's mean and deviation for the backward pass."""
    result: Tensor = _NormLinear.apply(x, norm_weight, norm_bias, eps, *_cast_for_product(weight, bias))
    return result


def gelu_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute linear(gelu(x)) for x [..., D], weight [E, D] and bias [E]: [..., E]."""
    return F.linear(F.gelu(x), weight, bias)


@fast_path_of(gelu_linear_reference)
def gelu_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute `gelu_linear_reference`, storing only x for the backward pass."""
    result: Tensor = _GeluLinear.apply(x, *_cast_for_product(weight, bias))
    return result


def _cast_for_product(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Cast to autocast's type here, so that autograd differentiates the cast, outside of the functions below."""
    device = weight.device.type
    if not torch.is_autocast_enabled(device):
        return weight, bias
    dtype = torch.get_autocast_dtype(device)
    return weight.to(dtype), None if bias is None else bias.to(dtype)


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            normed, mean, scale = torch.native_layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
            ctx.save_for_backward(x, norm_weight, norm_bias, mean, scale, weight)
            ctx.eps = eps
            return F.linear(normed.to(weight.dtype), weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, mean, scale, weight = ctx.saved_tensors
        wants_x, wants_norm_weight, wants_norm_bias, _, wants_weight, wants_bias = ctx.needs_input_grad
        to_weight = None
        if wants_weight:
            normed, *_ = torch.native_layer_norm(x, x.shape[-1:], norm_weight, norm_bias, ctx.eps)
            to_weight = gradient.flatten(0, -2).T @ normed.flatten(0, -2).to(weight.dtype)
        to_normed = (gradient @ weight).to(x.dtype)
        to_x, to_norm_weight, to_norm_bias = torch.ops.aten.native_layer_norm_backward(
            to_normed,
            x,
            x.shape[-1:],
            mean,
            scale,
            norm_weight,
            norm_bias,
            [wants_x, wants_norm_weight, wants_norm_bias],
        )
        to_bias = gradient.flatten(0, -2).sum(0) if wants_bias else None
        return to_x, to_norm_weight, to_norm_bias, None, to_weight, to_bias


class _GeluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            ctx.save_for_backward(x, weight)
            return F.linear(F.gelu(x).to(weight.dtype), weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)
        to_weight = rows.T @ F.gelu(x).flatten(0, -2).to(weight.dtype) if wants_weight else None
        to_x = torch.ops.aten.gelu_backward((gradient @ weight).to(x.dtype), x) if wants_x else None
        return to_x, to_weight, rows.sum(0) if wants_bias else None
