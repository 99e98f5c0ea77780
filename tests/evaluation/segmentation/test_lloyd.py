"""k-means."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from selfpatch.core.reference import use_references
from selfpatch.evaluation.segmentation.lloyd import (
    cluster_means,
    cluster_sums,
    kmeans,
    nearest_centre,
    reassign,
)


def test_clusters_are_found_and_restarts_keep_the_best() -> None:
    torch.manual_seed(0)
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = middles.repeat_interleave(50, 0) + torch.randn(150, 2)
    found = kmeans(points, 3, iterations=20, restarts=3, rng=np.random.default_rng(0))
    assert torch.cdist(middles, found.centres).min(1).values.max() < 0.5
    cluster, distance = nearest_centre(points, found.centres)
    torch.testing.assert_close(distance, torch.cdist(points, found.centres).min(1).values ** 2, rtol=1e-3, atol=1e-3)
    assert found.inertia == pytest.approx(float(distance.sum()), rel=1e-5)
    assert len(cluster.unique()) == 3
    for i in range(3):  # a fixed point of Lloyd's iteration
        torch.testing.assert_close(found.centres[i], points[cluster == i].mean(0), rtol=1e-4, atol=1e-4)


def test_progress_counts_the_iterations_of_all_runs() -> None:
    done: list[int] = []
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    kmeans(points, 4, iterations=30, restarts=2, rng=np.random.default_rng(0), on_iteration=done.append)
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, 60)
    assert {30, 31} <= {*done}
    assert len(done) < 60, "a run that converges is done"


def test_a_cluster_without_points_gets_the_farthest_one() -> None:
    points, cluster = torch.tensor([[0.0], [1.0], [10.0]]), torch.tensor([0, 0, 0])
    means = cluster_means(points, cluster, torch.tensor([0.0, 1.0, 100.0]), 2)
    torch.testing.assert_close(means, torch.tensor([[11 / 3], [10.0]]))


def test_coinciding_points_are_clustered() -> None:
    found = kmeans(torch.ones(10, 2), 3, iterations=5, restarts=1, rng=np.random.default_rng(0))
    assert found.inertia == 0
    with pytest.raises(ValueError, match="3 clusters cannot be made of 2 patches; use fewer clusters, more images or"):
        kmeans(torch.ones(2, 2), 3, iterations=5, restarts=1, rng=np.random.default_rng(0))


def test_float64_is_used_on_the_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """MPS has none."""
    moved: set[int] = set()
    to_cpu, to_double = Tensor.cpu, Tensor.double

    def cpu(x: Tensor) -> Tensor:
        moved.add(id(x))  # a tensor that is there already is returned as it is
        return to_cpu(x)

    def double(x: Tensor) -> Tensor:
        assert id(x) in moved
        return to_double(x)

    monkeypatch.setattr(Tensor, "cpu", cpu)
    monkeypatch.setattr(Tensor, "double", double)
    kmeans(torch.randn(20, 2), 3, iterations=5, restarts=2, rng=np.random.default_rng(0))
    assert moved


def test_sums_of_clusters_equal_the_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(500, 7, generator=generator)
    cluster = torch.randint(40, (500,), generator=generator) // 3 * 3  # two of three clusters are empty
    sums = cluster_sums(points, cluster, 41)
    with use_references():
        torch.testing.assert_close(cluster_sums(points, cluster, 41), sums)
    for number in range(41):
        expected = points[cluster == number].double().sum(0)
        torch.testing.assert_close(sums[number].double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_moved", [0, 1, 12, 29, 30])
def test_points_are_reassigned_as_by_comparing_with_all_centres(num_moved: int) -> None:
    generator = torch.Generator().manual_seed(num_moved)
    points, old = torch.randn(400, 6, generator=generator), torch.randn(30, 6, generator=generator)
    new = old.clone()
    new[torch.randperm(30, generator=generator)[:num_moved]] += 1.0
    lengths = points.square().sum(1)
    before = nearest_centre(points, old, lengths)
    cluster, distance = reassign(points, old, new, *before, lengths)
    with use_references():
        expected, distances = reassign(points, old, new, *before, lengths)
    assert torch.equal(cluster, expected)
    torch.testing.assert_close(distance, distances)
    assert bool(num_moved) == (not torch.equal(cluster, before[0]))


def test_k_means_equals_the_reference() -> None:
    """It has to the rounding of sums, by which ties could differ; these points have none."""
    points = torch.randn(600, 5, generator=torch.Generator().manual_seed(0))

    def found() -> Tensor:
        return kmeans(points, 60, iterations=30, restarts=2, rng=np.random.default_rng(0), init="random").centres

    fast = found()
    with use_references():
        torch.testing.assert_close(found(), fast, rtol=0, atol=1e-5)
