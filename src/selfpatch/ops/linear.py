"""Linear layers that recompute their input in the backward pass from tensors that are stored anyway.

The output of a layer norm or GELU costs little to compute and much to store. A transformer block stores 16 widths for
each token (two inputs of norms, their outputs, queries, keys and values, the output of attention, both sides of the
GELU); six of these are recomputed here.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from selfpatch.core.reference import fast_path_of


def norm_linear_reference(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Compute linear(layer_norm(x)) for x [..., D], norm's weight and bias [D], weight [E, D], bias [E]: [..., E]."""
    return F.linear(F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps), weight, bias)


@fast_path_of(norm_linear_reference)
def norm_linear(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """See `norm_linear_reference`; only x and each token's mean and deviation are stored for the backward pass."""
    result: Tensor = _NormLinear.apply(x, norm_weight, norm_bias, eps, *_cast_for_product(weight, bias))
    return result


def gelu_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute linear(gelu(x)) for x [..., D], weight [E, D] and bias [E]: [..., E]."""
    return F.linear(F.gelu(x), weight, bias)


@fast_path_of(gelu_linear_reference)
def gelu_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See `gelu_linear_reference`; only x is stored for the backward pass."""
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
        *wants_inputs, _, wants_weight, wants_bias = ctx.needs_input_grad
        shape, rows, to_weight = x.shape[-1:], gradient.flatten(0, -2), None
        if wants_weight:
            normed, *_ = torch.native_layer_norm(x, shape, norm_weight, norm_bias, ctx.eps)
            to_weight = rows.T @ normed.flatten(0, -2).to(weight.dtype)
        to_normed = (gradient @ weight).to(x.dtype)
        to_inputs = torch.ops.aten.native_layer_norm_backward(
            to_normed, x, shape, mean, scale, norm_weight, norm_bias, wants_inputs
        )
        return *to_inputs, None, to_weight, rows.sum(0) if wants_bias else None


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
