"""Means over the patches of images that are not left out."""

from __future__ import annotations

import torch

from selfpatch.losses.kept_patches import kept_patches, mean_over_images, mean_over_kept, mean_patch
from tests.helpers.workers import WorkerPool

PATCHES = torch.randn(3, 4, 5, generator=torch.manual_seed(0))
IGNORED = torch.tensor([[False, False, True, False], [True, True, False, True], [True, True, True, True]])


def test_all_patches_are_kept_unless_some_are_ignored() -> None:
    assert kept_patches(PATCHES, None).tolist() == [[True] * 4] * 3
    assert torch.equal(kept_patches(PATCHES, IGNORED), ~IGNORED)


def test_means_of_patches_and_losses() -> None:
    mean = mean_patch(PATCHES, ~IGNORED)
    torch.testing.assert_close(mean[0, 0], (PATCHES[0, 0] + PATCHES[0, 1] + PATCHES[0, 3]) / 3)
    torch.testing.assert_close(mean[1, 0], PATCHES[1, 2])
    assert mean.shape == (3, 1, 5)
    assert mean[2].abs().max() == 0
    losses = torch.tensor([[1.0, 2.0, 99.0, 6.0], [99.0, 99.0, 5.0, 99.0], [99.0] * 4])
    assert mean_over_kept(losses, ~IGNORED).tolist() == [3.0, 5.0, 0.0]


def test_images_with_fewer_than_two_patches_do_not_count() -> None:
    assert mean_over_images(torch.tensor([3.0, 5.0, 7.0]), ~IGNORED) == 3
    assert mean_over_images(torch.tensor([3.0, 5.0, 7.0]), torch.ones(3, 4, dtype=torch.bool)) == 5
    assert mean_over_images(torch.tensor([3.0, 5.0, 7.0]), torch.zeros(3, 4, dtype=torch.bool)) == 0


def mean_on_each(rank: int) -> float:
    losses, kept = ([3.0, 9.0], [2, 4]) if rank == 0 else ([99.0, 6.0], [1, 3])
    return mean_over_images(torch.tensor(losses), torch.arange(4) < torch.tensor(kept)[:, None]).item()


def test_the_mean_is_that_of_the_images_of_all_processes(pool: WorkerPool) -> None:
    parts = pool.run(mean_on_each)
    assert parts == [(3 + 9) * 2 / 3, 6 * 2 / 3]
    assert sum(parts) / 2 == (3 + 9 + 6) / 3
