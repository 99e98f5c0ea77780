"""InfoNCE, against its definition."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from selfpatch.ops import contrast
from selfpatch.ops.contrast import batch_info_nce, info_nce


def l2_normalize(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).float()


def info_nce_as_defined(queries: Tensor, keys: Tensor, negatives: Tensor, temp: float) -> Tensor:
    losses = []
    for query, key in zip(queries.flatten(0, -2), keys.flatten(0, -2), strict=True):
        own = (query @ key / temp).exp()
        others = sum((query @ negative / temp).exp() for negative in negatives)
        losses.append(-(own / (own + others)).log())
    return torch.stack(losses).view(queries.shape[:-1])


@pytest.mark.parametrize("shape", [(4, 3), (2, 5, 3)])
@pytest.mark.parametrize("temp", [0.2, 1.0])
def test_info_nce_and_its_gradients_are_as_defined(shape: tuple[int, ...], temp: float) -> None:
    given = [l2_normalize(*shape, seed=1), l2_normalize(*shape, seed=2), l2_normalize(7, 3, seed=3)]
    ours, plain = ([x.clone().requires_grad_() for x in given] for _ in range(2))
    got, expected = info_nce(*ours, temp), info_nce_as_defined(*plain, temp)
    torch.testing.assert_close(got, expected)
    got.square().sum().backward()
    expected.square().sum().backward()
    for x, y in zip(ours, plain, strict=True):
        torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("temp", [0.2, 1.0])
def test_info_nce_in_the_batch_is_that_against_the_keys_of_others(temp: float) -> None:
    queries, keys = l2_normalize(3, 4, seed=1), l2_normalize(6, 4, seed=2)
    losses = batch_info_nce(queries, keys, 2, temp)
    for i, loss in enumerate(losses):
        own = 2 + i
        others = torch.cat([keys[:own], keys[own + 1 :]])
        torch.testing.assert_close(loss, info_nce(queries[i], keys[own], others, temp))


def test_info_nce_has_known_values() -> None:
    query = torch.tensor([[1.0, 0.0]])
    assert info_nce(query, query, torch.tensor([[0.0, 1.0]]), 1.0).item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert info_nce(query, query, query, 0.1).item() == pytest.approx(math.log(2))
    assert batch_info_nce(query, query, 0, 0.2).item() == 0.0, "without another key there is nothing to tell apart"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vectors_of_norm_1_are_float32(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 8).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = contrast.l2_normalize(x)
    assert torch.equal(found, F.normalize(x.float(), dim=-1))
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_are_computed_in_float32_under_autocast(dtype: torch.dtype) -> None:
    given = [
        l2_normalize(5, 64, seed=1).to(dtype),
        l2_normalize(5, 64, seed=2).to(dtype),
        l2_normalize(9, 64, seed=3).to(dtype),
    ]
    queries, keys, negatives = (x.float() for x in given)
    expected = info_nce(queries, keys, negatives, 0.2), batch_info_nce(queries, keys, 0, 0.2)
    with torch.autocast("cpu", torch.bfloat16):
        got = info_nce(*given, 0.2), batch_info_nce(*given[:2], 0, 0.2)
    for x, y in zip(got, expected, strict=True):
        assert x.dtype == torch.float32
        assert torch.equal(x, y)
