"""Soft sorting: the fast path against its loop, sharp limits, and which bitonic networks sort."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from selfpatch.ops.soft_sort import Network, comparators, soft_sort, soft_sort_reference

SHARP = 1e12


def values(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.manual_seed(seed), dtype=torch.float64)


def sorts(n: int, network: Network) -> bool:
    """Whether a network sorts every row of zeros and ones, and so everything (Knuth's 0-1 principle)."""
    x = torch.tensor(list(itertools.product([0, 1], repeat=n)))
    for layer in comparators(n, network):
        for low, high in layer:
            x[:, low], x[:, high] = x[:, low].minimum(x[:, high]), x[:, low].maximum(x[:, high])
    return bool((x.diff(dim=1) >= 0).all())


@pytest.mark.parametrize("network", ["bitonic", "odd_even"])
def test_the_networks_sort_and_their_layers_are_disjoint(network: Network) -> None:
    assert all(sorts(n, network) for n in range(1, 13))
    for n in (13, 16, 49):
        for layer in comparators(n, network):
            wires = [wire for pair in layer for wire in pair]
            assert len(set(wires)) == len(wires)
            assert set(wires) <= set(range(n))
    assert len(comparators(49, "bitonic")) == 21
    assert len(comparators(49, "odd_even")) == 49


@pytest.mark.parametrize("network", ["bitonic", "odd_even"])
@pytest.mark.parametrize("n", [1, 2, 7, 9, 16])
def test_the_fast_path_is_the_loop(n: int, network: Network) -> None:
    x = values(2, 3, n).requires_grad_()
    weights = values(2, 3, n, n, seed=1)
    results = [sort(x, 5.0, network) for sort in (soft_sort, soft_sort_reference)]
    gradients = [torch.autograd.grad((p * weights).sum() + s.square().sum(), x) for s, p in results]
    torch.testing.assert_close(*results)
    torch.testing.assert_close(*gradients)


def test_gradients_are_those_of_finite_differences() -> None:
    assert torch.autograd.gradcheck(lambda x: soft_sort(x, 3.0), values(2, 5).requires_grad_())


def test_permutations_are_doubly_stochastic_and_sort_the_values() -> None:
    x = values(4, 9)
    ordered, permutation = soft_sort(x, 10.0)
    for dim in (-1, -2):
        torch.testing.assert_close(permutation.sum(dim), torch.ones_like(x))
    torch.testing.assert_close(torch.einsum("ri,rik->rk", x, permutation), ordered)


@pytest.mark.parametrize("network", ["bitonic", "odd_even"])
@pytest.mark.parametrize("n", [9, 11, 49, 81])
def test_steep_comparators_sort_exactly(n: int, network: Network) -> None:
    x = values(20, n)
    ordered, permutation = soft_sort(x, SHARP, network)
    torch.testing.assert_close(ordered, x.sort().values)
    assert torch.equal(permutation.argmax(-2), x.argsort()), "inputs are rows, ranks are columns"


def test_ties_share_their_ranks_and_low_precision_is_widened() -> None:
    ordered, permutation = soft_sort(torch.ones(3, dtype=torch.bfloat16), 100.0, "odd_even")
    assert ordered.dtype == permutation.dtype == torch.float32
    assert permutation.min() > 0
    torch.testing.assert_close(ordered, torch.ones(3))


@pytest.mark.parametrize(("n", "advice"), [(22, 21), (46, 41)])
def test_a_bitonic_network_that_does_not_sort_is_refused(n: int, advice: int) -> None:
    with pytest.raises(ValueError, match=f"on {n} values does not sort them; use odd_even, or {advice} values"):
        soft_sort(torch.zeros(n), 100.0)
    assert comparators(advice), "its advice is accepted"
    assert soft_sort(torch.zeros(n), 100.0, "odd_even")[0].shape == (n,)


def test_the_refused_network_indeed_does_not_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selfpatch.ops.soft_sort._bitonic_sorts", lambda n: True)
    x = values(200, 22)
    ordered, _ = soft_sort_reference(x, SHARP)
    assert not torch.allclose(ordered, x.sort().values)


def test_no_values_are_refused() -> None:
    with pytest.raises(ValueError, match="got 0 values to sort; give at least 1"):
        soft_sort(torch.zeros(2, 0), 100.0)
