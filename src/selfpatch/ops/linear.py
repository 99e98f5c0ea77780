"""Linear layers that recompute their input in the backward pass, or whose weight has an update of low rank.

The output of a layer norm or GELU costs little to compute and much to store. A transformer block stores 16 widths for
each token (two inputs of norms, their outputs, queries, keys and values, the output of attention, both sides of the
GELU); six of these are recomputed here.

An update of low rank (LoRA) is added to the weight before the product, so that the forward pass costs what it does
without. The gradient of the update needs no gradient of the whole weight, which is a third of a layer's computation.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from selfpatch.core.reference import fast_path_of


class LowRank(NamedTuple):
    """Update b @ a of a weight [E, D] (LoRA, arXiv 2106.09685, equation 3)."""

    a: Tensor
    """[r, D]."""
    b: Tensor
    """[E, r], times the factor alpha / r."""


def low_rank_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None, low_rank: LowRank | None) -> Tensor:
    """Compute x @ (weight + b @ a)^T + bias for x [..., D], weight [E, D] and bias [E]: [..., E]."""
    return F.linear(x, weight if low_rank is None else weight + low_rank.b @ low_rank.a, bias)


@fast_path_of(low_rank_linear_reference)
def low_rank_linear(x: Tensor, weight: Tensor, bias: Tensor | None, low_rank: LowRank | None) -> Tensor:
    """See `low_rank_linear_reference`; x, the weight and the update are stored for the backward pass."""
    result: Tensor = _Linear.apply(x, False, *_product_arguments(weight, bias, low_rank))
    return result


def norm_linear_reference(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    low_rank: LowRank | None = None,
) -> Tensor:
    """Compute linear(layer_norm(x)) for x [..., D], norm's weight and bias [D], weight [E, D], bias [E]: [..., E]."""
    normed = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
    return low_rank_linear_reference(normed, weight, bias, low_rank)


@fast_path_of(norm_linear_reference)
def norm_linear(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor | None,
    low_rank: LowRank | None = None,
) -> Tensor:
    """See `norm_linear_reference`; only x and each token's mean and deviation are stored for the backward pass."""
    arguments = _product_arguments(weight, bias, low_rank)
    # A norm computes in the type of its input, also where its parameters are gathered in a lower one.
    result: Tensor = _NormLinear.apply(x, norm_weight.to(x.dtype), norm_bias.to(x.dtype), eps, *arguments)
    return result


def gelu_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None, low_rank: LowRank | None = None) -> Tensor:
    """Compute linear(gelu(x)) for x [..., D], weight [E, D] and bias [E]: [..., E]."""
    return low_rank_linear_reference(F.gelu(x), weight, bias, low_rank)


@fast_path_of(gelu_linear_reference)
def gelu_linear(x: Tensor, weight: Tensor, bias: Tensor | None, low_rank: LowRank | None = None) -> Tensor:
    """See `gelu_linear_reference`; only x is stored for the backward pass."""
    result: Tensor = _Linear.apply(x, True, *_product_arguments(weight, bias, low_rank))
    return result


def _product_arguments(weight: Tensor, bias: Tensor | None, low_rank: LowRank | None) -> tuple[Any, ...]:
    """Return weight, bias, a, b and the type of the product, as the functions below take them.

    Weight and bias are cast to autocast's type here, so that autograd differentiates the cast. A weight with an update
    is cast after the update, which could vanish in bfloat16.
    """
    device = weight.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    bias = None if bias is None else bias.to(dtype)
    if low_rank is None:
        return weight.to(dtype), bias, None, None, dtype
    return weight, bias, *low_rank, dtype


def _updated(weight: Tensor, a: Tensor | None, b: Tensor | None, dtype: torch.dtype) -> Tensor:
    return weight if a is None or b is None else torch.addmm(weight, b, a).to(dtype)


def _backward(
    gradient: Tensor,
    inputs: Callable[[], Tensor],
    parameters: tuple[Tensor, Tensor | None, Tensor | None],
    wants: tuple[bool, ...],
    dtype: torch.dtype,
) -> tuple[Tensor | None, ...]:
    """Return the gradients for weight, bias, a and b of a product with weight + b @ a.

        to_weight = gradient^T inputs
        to_a = b^T to_weight,  to_b = to_weight a^T      computed without to_weight

    `parameters` are weight, a and b; `inputs` computes the product's input [..., D].
    """
    weight, a, b = parameters
    wants_weight, wants_bias, wants_a, wants_b = wants
    to_weight = to_a = to_b = None
    rows = gradient.flatten(0, -2)
    if wants_weight or wants_a or wants_b:
        entries = inputs().flatten(0, -2).to(dtype)
        if wants_weight:
            to_weight = (rows.T @ entries).to(weight.dtype)
        if wants_a and b is not None:
            to_a = ((rows @ b.to(dtype)).T @ entries).to(b.dtype)
        if wants_b and a is not None:
            to_b = ((entries @ a.to(dtype).T).T @ rows).T.to(a.dtype)  # a narrow right factor is slow on a CPU
    return to_weight, rows.sum(0) if wants_bias else None, to_a, to_b


class _Linear(torch.autograd.Function):
    """Product of x, or of gelu(x), which is computed again in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gelu: bool,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor | None,
        b: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            ctx.save_for_backward(x, weight, a, b)
            ctx.gelu, ctx.dtype = gelu, dtype
            return F.linear((F.gelu(x) if gelu else x).to(dtype), _updated(weight, a, b, dtype), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        wants_x, _, *wants, _ = ctx.needs_input_grad
        inputs = partial(F.gelu, x) if ctx.gelu else lambda: x
        to_parameters = _backward(gradient, inputs, (weight, a, b), tuple(wants), ctx.dtype)
        to_x = (gradient @ _updated(weight, a, b, ctx.dtype)).to(x.dtype) if wants_x else None
        if to_x is not None and ctx.gelu:
            to_x = torch.ops.aten.gelu_backward(to_x, x)
        return to_x, None, *to_parameters, None


class _NormLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        eps: float,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor | None,
        b: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            normed, mean, scale = torch.native_layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
            ctx.save_for_backward(x, norm_weight, norm_bias, mean, scale, weight, a, b)
            ctx.eps, ctx.dtype = eps, dtype
            return F.linear(normed.to(dtype), _updated(weight, a, b, dtype), bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, norm_bias, mean, scale, weight, a, b = ctx.saved_tensors
        *wants_inputs, _, wants_weight, wants_bias, wants_a, wants_b, _ = ctx.needs_input_grad
        wants, shape = (wants_weight, wants_bias, wants_a, wants_b), x.shape[-1:]

        def normed() -> Tensor:
            return torch.native_layer_norm(x, shape, norm_weight, norm_bias, ctx.eps)[0]

        to_parameters = _backward(gradient, normed, (weight, a, b), wants, ctx.dtype)
        to_normed = (gradient @ _updated(weight, a, b, ctx.dtype)).to(x.dtype)
        to_inputs = torch.ops.aten.native_layer_norm_backward(
            to_normed, x, shape, mean, scale, norm_weight, norm_bias, wants_inputs
        )
        return *to_inputs, None, *to_parameters, None
