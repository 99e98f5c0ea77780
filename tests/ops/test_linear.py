"""Linear layers that compute their input again: equal to the plain ones, and keeping less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from selfpatch.ops.linear import (
    LowRank,
    gelu_linear,
    gelu_linear_reference,
    low_rank_linear,
    low_rank_linear_reference,
    norm_linear,
    norm_linear_reference,
)


def after_norm(dtype: torch.dtype = torch.float64, lead: tuple[int, ...] = (2, 3)) -> tuple[Any, ...]:
    """x, the norm's weight, bias and eps, the linear layer's weight and bias."""
    generator = torch.manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype)

    return draw(*lead, 5), 1 + 0.3 * draw(5), draw(5), 1e-6, draw(4, 5), draw(4)


def after_gelu(dtype: torch.dtype = torch.float64, lead: tuple[int, ...] = (2, 3)) -> tuple[Any, ...]:
    x, _, _, _, weight, bias = after_norm(dtype, lead)
    return x, weight, bias


PAIRS: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], Callable[..., tuple[Any, ...]]]] = {
    "norm": (norm_linear, norm_linear_reference, after_norm),
    "gelu": (gelu_linear, gelu_linear_reference, after_gelu),
}


def value_and_gradients(
    function: Callable[..., Tensor], given: tuple[Any, ...], frozen: int | None = None
) -> list[Any]:
    """Output, then the gradient for each tensor, None for the one that is frozen."""
    given = tuple(g.clone() if isinstance(g, Tensor) else g for g in given)
    tensors = [g for g in given if isinstance(g, Tensor)]
    for place, tensor in enumerate(tensors):
        tensor.requires_grad_(place != frozen)
    output = function(*given)
    slope = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    output.backward(slope)
    return [output.detach(), *(tensor.grad for tensor in tensors)]


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("lead", [(7,), (2, 3), (2, 1, 3), (0, 3)], ids=str)
def test_value_and_gradients_are_those_of_the_reference(kind: str, lead: tuple[int, ...]) -> None:
    fast, reference, make = PAIRS[kind]
    given = make(lead=lead)
    torch.testing.assert_close(value_and_gradients(fast, given), value_and_gradients(reference, given))


@pytest.mark.parametrize("kind", PAIRS)
def test_a_missing_bias_gives_the_value_and_gradients_of_the_reference(kind: str) -> None:
    fast, reference, make = PAIRS[kind]
    *given, _ = make()
    results = [value_and_gradients(function, (*given, None)) for function in (fast, reference)]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("kind", PAIRS)
def test_frozen_inputs_have_no_gradient_and_the_others_the_right_one(kind: str) -> None:
    fast, reference, make = PAIRS[kind]
    given = make()
    for frozen in range(sum(isinstance(g, Tensor) for g in given)):
        result = value_and_gradients(fast, given, frozen)
        assert result[1 + frozen] is None
        expected = value_and_gradients(reference, given, frozen)
        for own, theirs in zip(result, expected, strict=True):
            if theirs is not None:
                torch.testing.assert_close(own, theirs)


@pytest.mark.parametrize("kind", PAIRS)
def test_under_autocast_types_and_numbers_are_those_of_the_reference(kind: str) -> None:
    fast, reference, make = PAIRS[kind]
    given = make(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        own, theirs = (value_and_gradients(function, given) for function in (fast, reference))
    assert [x.dtype for x in own] == [x.dtype for x in theirs]
    assert own[0].dtype == torch.bfloat16
    torch.testing.assert_close(own, theirs, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("kind", PAIRS)
def test_only_needed_tensors_are_stored(kind: str) -> None:
    """Of the size of x: x alone."""
    fast, reference, make = PAIRS[kind]
    given = tuple(g.requires_grad_() if isinstance(g, Tensor) else g for g in make(lead=(40,)))
    kept: dict[str, set[int]] = {"fast": set(), "reference": set()}
    for name, function in [("fast", fast), ("reference", reference)]:

        def keep(tensor: Tensor, name: str = name) -> Tensor:
            if tensor.numel() >= 40 * 5:
                kept[name].add(tensor.data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            function(*given)
    assert kept["fast"] == {given[0].data_ptr()}
    assert len(kept["reference"]) == 2


def with_update(make: Callable[..., tuple[Any, ...]], dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    """The inputs of `make`, then the two parts of an update of the weight [4, 5] of rank 2."""
    given, generator = make(dtype), torch.manual_seed(2)
    return *given, *(0.5 * torch.randn(shape, generator=generator, dtype=dtype) for shape in [(2, 5), (4, 2)])


def updated(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *given: function(*given[:-2], LowRank(*given[-2:]))


LOW_RANK = PAIRS | {"plain": (low_rank_linear, low_rank_linear_reference, after_gelu)}


@pytest.mark.parametrize("frozen", [None, "weight"])
@pytest.mark.parametrize("kind", LOW_RANK)
def test_an_update_of_low_rank_has_the_value_and_gradients_of_the_whole_weight(kind: str, frozen: str | None) -> None:
    fast, reference, make = LOW_RANK[kind]
    given = with_update(make)
    place = None if frozen is None else sum(isinstance(g, Tensor) for g in given) - 4
    results = [value_and_gradients(updated(function), given, place) for function in (fast, reference)]
    torch.testing.assert_close(*results)
    assert frozen is None or results[0][1 + (place or 0)] is None
    half = with_update(make, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        own, theirs = (value_and_gradients(updated(function), half, place) for function in (fast, reference))
    assert [None if x is None else x.dtype for x in own] == [None if x is None else x.dtype for x in theirs]
    torch.testing.assert_close(own, theirs, rtol=0.03, atol=0.06)
