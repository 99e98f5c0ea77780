"""The memory of labelled patches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from selfpatch.evaluation.segmentation.knn import PatchMemory


def test_votes_equal_the_loop() -> None:
    torch.manual_seed(0)
    features, labels, queries = F.normalize(torch.randn(40, 6)), torch.rand(40, 4), torch.randn(11, 6)
    for max_similarities in (5, 12, 45, 100, 10**6):  # blocks of the memory, of the queries, neither
        memory = PatchMemory(features, labels, k=5, temperature=0.1, max_similarities=max_similarities)
        votes = memory.votes(queries)
        for query, found in zip(queries, votes, strict=True):
            cosine = torch.cosine_similarity(query[None], features)
            nearest = cosine.argsort(descending=True)[:5]
            expected = ((cosine[nearest] / 0.1).softmax(0)[:, None] * labels[nearest]).sum(0)
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_votes_never_hold_more_cosines_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    multiply = Tensor.__matmul__

    def spy(a: Tensor, b: Tensor) -> Tensor:
        product = multiply(a, b)
        sizes.append(product.numel())
        return product

    monkeypatch.setattr(Tensor, "__matmul__", spy)
    for allowed in (40, 600, 10_000):
        sizes.clear()
        memory = PatchMemory(torch.randn(500, 8), torch.rand(500, 3), k=4, temperature=0.02, max_similarities=allowed)
        memory.votes(torch.randn(300, 8))
        assert 0 < max(sizes) <= allowed
        assert sum(sizes) == 500 * 300


def test_a_memory_that_cannot_vote_is_refused() -> None:
    with pytest.raises(ValueError, match="k is 5 for 4 remembered patches"):
        PatchMemory(torch.randn(4, 2), torch.rand(4, 2), k=5, temperature=0.1)
    with pytest.raises(ValueError, match="temperature is 0"):
        PatchMemory(torch.randn(4, 2), torch.rand(4, 2), k=1, temperature=0)
