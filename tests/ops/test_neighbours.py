"""Neighbour tables, similarities and positives against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selfpatch.config.matching import Border, Window, check_matching
from selfpatch.ops.neighbours import (
    neighbour_similarity,
    neighbour_similarity_reference,
    neighbour_table,
    top_positives,
)
from tests.helpers.largest_tensor import LargestTensor


def neighbours_by_loop(h: int, w: int, window: Window, border: Border) -> list[list[int]]:
    """The definition: every patch that a step within the window leads to, itself left out."""
    if window == "all":
        return [[j for j in range(h * w) if j != i] for i in range(h * w)]
    found = []
    for y in range(h):
        for x in range(w):
            reached = set()
            for dy in range(-(window // 2), window // 2 + 1):
                for dx in range(-(window // 2), window // 2 + 1):
                    if border == "wrap":
                        reached.add(((y + dy) % h) * w + (x + dx) % w)
                    elif 0 <= y + dy < h and 0 <= x + dx < w:
                        reached.add((y + dy) * w + x + dx)
            found.append(sorted(reached - {y * w + x}))
    return found


@settings(max_examples=100)
@given(
    h=st.integers(1, 7),
    w=st.integers(2, 7),
    window=st.sampled_from([3, 5, 7, "all"]),
    border=st.sampled_from(["wrap", "clip"]),
)
def test_table_holds_what_a_loop_finds(h: int, w: int, window: Window, border: Border) -> None:
    table = neighbour_table(h, w, window, border)
    expected = neighbours_by_loop(h, w, window, border)
    assert table.indices.shape == table.valid.shape == (h * w, h * w - 1 if window == "all" else window**2 - 1)
    assert table.min_neighbours == min(map(len, expected))
    for i, neighbours in enumerate(expected):
        m = len(neighbours)
        assert table.indices[i, :m].tolist() == neighbours
        assert table.indices[i, m:].tolist() == [i] * (table.indices.shape[1] - m)
        assert table.valid[i].tolist() == [True] * m + [False] * (table.indices.shape[1] - m)


def test_a_torus_of_two_by_two_meets_itself() -> None:
    table = neighbour_table(2, 2)
    assert table.indices.tolist() == [
        [1, 2, 3, 0, 0, 0, 0, 0],
        [0, 2, 3, 1, 1, 1, 1, 1],
        [0, 1, 3, 2, 2, 2, 2, 2],
        [0, 1, 2, 3, 3, 3, 3, 3],
    ]
    assert table.valid.sum(1).tolist() == [3, 3, 3, 3]
    assert table.min_neighbours == 3


def test_clipped_corners_have_three_neighbours_and_edges_five() -> None:
    counts = neighbour_table(4, 5, border="clip").valid.sum(1).view(4, 5)
    assert counts.tolist() == [[3, 5, 5, 5, 3], [5, 8, 8, 8, 5], [5, 8, 8, 8, 5], [3, 5, 5, 5, 3]]


def test_one_callers_table_does_not_depend_on_anothers_mode() -> None:
    with torch.inference_mode():
        neighbour_table(9, 2)
    features = torch.randn(1, 18, 4, requires_grad=True)
    neighbour_similarity(features, neighbour_table(9, 2)).masked_fill(~neighbour_table(9, 2).valid, 0).sum().backward()
    assert features.grad is not None


@pytest.mark.parametrize("border", ["wrap", "clip"])
@pytest.mark.parametrize("window", [3, 5, "all"])
@pytest.mark.parametrize("grid", [(4, 6), (5, 2), (1, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_similarity_equals_the_reference(
    grid: tuple[int, int], window: Window, border: Border, dtype: torch.dtype
) -> None:
    h, w = grid
    table = neighbour_table(h, w, window, border)
    features = torch.randn(2, h * w, 5, generator=torch.manual_seed(0)).to(dtype)
    upstream = torch.randn(2, *table.indices.shape)
    results: list[tuple[Tensor, Tensor]] = []
    for similarity_of in (neighbour_similarity, neighbour_similarity_reference):
        x = features.clone().requires_grad_()
        similarity = similarity_of(x, table)
        assert similarity.dtype == torch.float32
        (gradient,) = torch.autograd.grad((similarity * upstream)[table.valid.expand_as(upstream)].sum(), x)
        results.append((similarity.detach(), gradient))
    (fast, fast_gradient), (plain, plain_gradient) = results
    assert torch.equal(fast.isneginf(), ~table.valid.expand_as(fast))
    torch.testing.assert_close(fast, plain, rtol=0, atol=2e-6)
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5  # the gradient itself is rounded to the features' type
    torch.testing.assert_close(fast_gradient, plain_gradient, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("grid", "largest"), [((4, 6), 24 * 24), ((8, 12), 96 * 8 * 5)])
def test_a_large_grid_needs_no_matrix_of_all_pairs(grid: tuple[int, int], largest: int) -> None:
    features, table = torch.randn(1, math.prod(grid), 5, generator=torch.manual_seed(0)), neighbour_table(*grid)
    with LargestTensor() as measured:
        similarity = neighbour_similarity(features, table)
    assert measured.elements == largest
    torch.testing.assert_close(similarity, neighbour_similarity_reference(features, table))


def test_reference_similarity_is_the_cosine() -> None:
    features = torch.tensor([[[3.0, 0.0], [1.0, 1.0], [0.0, -2.0]]])
    table = neighbour_table(1, 3, "all")  # neighbours 1, 2 of 0; 0, 2 of 1; 0, 1 of 2
    half = math.sqrt(0.5)
    expected = torch.tensor([[[half, 0.0], [half, -half], [0.0, -half]]])
    torch.testing.assert_close(neighbour_similarity_reference(features, table), expected)


def test_similarity_keeps_float32_under_autocast() -> None:
    """Positives are chosen by it: in bfloat16 many neighbours would tie."""
    features = torch.randn(2, 12, 8, generator=torch.manual_seed(0))
    table = neighbour_table(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        similarity = neighbour_similarity(features, table)
    assert similarity.dtype == torch.float32
    torch.testing.assert_close(similarity, neighbour_similarity_reference(features, table), rtol=0, atol=2e-6)


@pytest.mark.parametrize("border", ["wrap", "clip"])
@pytest.mark.parametrize(("window", "k"), [(3, 1), (3, 4), (3, 8), (5, 4), ("all", 19)])
def test_positives_are_the_most_similar_neighbours(window: Window, k: int, border: Border) -> None:
    h, w = 4, 5
    features = torch.randn(2, h * w, 6, generator=torch.manual_seed(1))
    positives = top_positives(features, k, neighbour_table(h, w, window, border))
    assert positives.indices.shape == (2, h * w, k)
    expected = neighbours_by_loop(h, w, window, border)
    assert (positives.valid is None) == (min(map(len, expected)) >= k)
    for b in range(2):
        for i, neighbours in enumerate(expected):
            cosine = torch.cosine_similarity(features[b, i, None], features[b, neighbours], dim=-1)
            best = [neighbours[j] for j in cosine.argsort(descending=True).tolist()][:k]
            assert positives.indices[b, i, : len(best)].tolist() == best
            if positives.valid is not None:
                assert positives.valid[b, i].tolist() == [True] * len(best) + [False] * (k - len(best))


@pytest.mark.parametrize(
    ("k", "window", "border", "message"),
    [
        (4, 4, "wrap", "window is 4; use an odd number"),
        (4, 1, "wrap", "window is 1; use an odd number"),
        (4, "some", "wrap", "window is 'some'"),
        (4, 3, "reflect", "border is 'reflect'; use 'wrap'"),
        (0, 3, "wrap", "k is 0; at least 1"),
        (9, 3, "clip", "k is 9, but a 3x3 window has 8 neighbours"),
    ],
)
def test_invalid_settings_are_refused(k: int, window: Window, border: Border, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_matching(k, window, border)


def test_a_grid_of_one_patch_is_refused() -> None:
    with pytest.raises(ValueError, match="a grid of 1 x 1 patches has no neighbours"):
        neighbour_table(1, 1)
    with pytest.raises(ValueError, match="window is 2"):
        neighbour_table(4, 4, 2)
    with pytest.raises(ValueError, match="k is 6, but a patch has 5 neighbours"):
        top_positives(torch.randn(1, 6, 4), 6, neighbour_table(2, 3, "all"))
