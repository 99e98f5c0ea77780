"""Differentiable sorting: networks of relaxed comparators (arXiv 2105.04019; Cauchy relaxation, arXiv 2203.09630)."""

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from selfpatch.core.constants import cached_constant
from selfpatch.core.reference import fast_path_of
from selfpatch.core.text import counted

Network = Literal["bitonic", "odd_even"]

Layer = list[tuple[int, int]]
"""Comparators that work at the same time; each is (wire that gets the minimum, wire that gets the maximum)."""


def comparators(n: int, network: Network = "bitonic") -> list[Layer]:
    """Return the layers of a network that sorts n values in ascending order, as diffsort 0.2.0 has them.

    `odd_even` compares neighbours in n layers. `bitonic` has fewer layers, k (k + 1) / 2 for up to 2^k values. If n is
    less, the first 2^k - n wires and their comparators are left out.

    Raises:
        ValueError: there is no value, or the bitonic network without those wires does not sort. diffsort accepts it.
    """
    if n < 1:
        raise ValueError(f"got {counted(n, 'value')} to sort; give at least 1")
    if network == "odd_even":
        return [[(i, i + 1) for i in range(layer % 2, n - 1, 2)] for layer in range(n)]
    if not _bitonic_sorts(n):
        smaller = next(k for k in range(n - 1, 0, -1) if _bitonic_sorts(k))
        raise ValueError(f"a bitonic network on {n} values does not sort them; use odd_even, or {smaller} values")
    return list(_bitonic_layers(n))


def _bitonic_sorts(n: int) -> bool:
    """Return whether the bitonic network sorts without the wires that are left out (exact for n <= 128 at least).

    It does not if a merge in descending order has a first half with 2 or more of those wires and 2 or more others.
    """
    num_blocks = (n - 1).bit_length()
    left_out = 2**num_blocks - n
    for half in (2**k for k in range(num_blocks - 1)):
        block, missing = divmod(left_out, 2 * half)
        if block % 2 == 1 and 2 <= missing <= half - 2:
            return False
    return True


def _bitonic_layers(n: int) -> Iterator[Layer]:
    num_blocks = (n - 1).bit_length()
    first = 2**num_blocks - n
    for block in range(num_blocks):
        for distance in (2**k for k in range(block, -1, -1)):
            wires = [i for i in range(first, 2**num_blocks - distance) if not i & distance]
            descending = [bool(i & 2 ** (block + 1)) for i in wires]
            pairs = [(i - first, i - first + distance) for i in wires]
            yield [pair[::-1] if swap else pair for pair, swap in zip(pairs, descending, strict=True)]


def soft_sort_reference(values: Tensor, steepness: float, network: Network = "bitonic") -> tuple[Tensor, Tensor]:
    """Sort rows of values [..., n] in ascending order, differentiably, one comparator after the other.

        P = identity
        for each layer of the network, for each of its comparators (low, high):
            a = atan(steepness * (x[high] - x[low])) / pi + 1/2
            x[low], x[high]       = a x[low] + (1 - a) x[high],        (1 - a) x[low] + a x[high]
            P[:, low], P[:, high] = a P[:, low] + (1 - a) P[:, high],  (1 - a) P[:, low] + a P[:, high]

    Args:
        values: [..., n]; computed in float32 or, if they are, in float64.
        steepness: inverse width of a comparator; infinity sorts exactly.
        network: sorting network, see `comparators`.

    Returns:
        Sorted values [..., n] and permutations [..., n, n]: how much of input i (rows) comes at rank r (columns). Rows
        and columns sum to 1, and sorted = values @ permutation.
    """
    values = values if values.dtype == torch.float64 else values.float()
    n = values.shape[-1]
    wires = list(values.unbind(-1))
    identity = torch.eye(n, dtype=values.dtype, device=values.device).expand(*values.shape, n)
    columns = list(identity.unbind(-1))
    for layer in comparators(n, network):
        for low, high in layer:
            a = (steepness * (wires[high] - wires[low])).atan() / math.pi + 0.5
            b = a.unsqueeze(-1)
            wires[low], wires[high] = a * wires[low] + (1 - a) * wires[high], (1 - a) * wires[low] + a * wires[high]
            columns[low], columns[high] = (
                b * columns[low] + (1 - b) * columns[high],
                (1 - b) * columns[low] + b * columns[high],
            )
    return torch.stack(wires, -1), torch.stack(columns, -1)


@fast_path_of(soft_sort_reference)
def soft_sort(values: Tensor, steepness: float, network: Network = "bitonic") -> tuple[Tensor, Tensor]:
    """See `soft_sort_reference`; a layer is one step for all wires, which lie in the leading dimension.

    Each wire moves towards its partner by 1 - a. A wire without comparator is its own partner, and stays.
    """
    values = values if values.dtype == torch.float64 else values.float()
    n, lead = values.shape[-1], values.shape[:-1]
    partners, signs = _wiring(n, network, values.device)
    identity = torch.eye(n, dtype=values.dtype, device=values.device)
    wires, columns = values.movedim(-1, 0), identity.view(n, *(1,) * len(lead), n).expand(n, *lead, n)
    for partner, sign in zip(partners, signs.view(-1, n, *(1,) * len(lead)), strict=True):
        difference = _swap(wires, partner) - wires
        share = 0.5 - (steepness * sign * difference).atan() / math.pi  # [n, ...]
        wires = wires + share * difference
        columns = torch.addcmul(columns, share.unsqueeze(-1), _swap(columns, partner) - columns)
    return wires.movedim(0, -1), columns.movedim(0, -1)


def _swap(x: Tensor, partners: Tensor) -> Tensor:
    """Return rows x[partners], where each row is the partner of its own partner."""
    swapped: Tensor = _Swap.apply(x, partners)
    return swapped


class _Swap(torch.autograd.Function):
    """Its gradient is the same swap; autograd, which cannot know that, would sum into zeros."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, partners: Tensor) -> Tensor:
        ctx.save_for_backward(partners)
        return x.index_select(0, partners)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        return grad_output.index_select(0, *ctx.saved_tensors), None


@cached_constant
def _wiring(n: int, network: Network, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return each wire's partner in each layer, [L, n] int64, and its sign [L, n]: 1 for the minimum, -1 for the other.

    Without comparator, the sign means nothing.
    """
    layers = comparators(n, network)
    partners, signs = [list(range(n)) for _ in layers], [[1.0] * n for _ in layers]
    for k, layer in enumerate(layers):
        for low, high in layer:
            partners[k][low], partners[k][high] = high, low
            signs[k][high] = -1.0
    return torch.tensor(partners, device=device), torch.tensor(signs, device=device)
