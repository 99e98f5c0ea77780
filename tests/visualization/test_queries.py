"""The choice of query patches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from selfpatch.visualization.queries import patches_at, salient_patches


def test_points_fall_on_the_patches_under_them() -> None:
    assert patches_at([(0, 0), (0.99, 0.0), (0.5, 0.5), (1, 1)], (4, 6)) == [0, 5, 15, 23]
    with pytest.raises(ValueError, match="outside the image"):
        patches_at([(0.5, -0.1)], (4, 6))


def test_salient_patches_find_each_of_four_regions() -> None:
    features = torch.zeros(16, 16, 4)
    for number, (row, column) in enumerate([(0, 0), (0, 8), (8, 0), (8, 8)]):
        features[row : row + 8, column : column + 8, number] = 1
    chosen = salient_patches(features, 4)
    assert {(i // 16 // 8, i % 16 // 8) for i in chosen} == {(0, 0), (0, 1), (1, 0), (1, 1)}
    assert chosen == salient_patches(features.clone(), 4)


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (2, 2), (3, 3), (9, 12)])
def test_salient_patches_of_any_grid_are_distinct(grid: tuple[int, int]) -> None:
    h, w = grid
    chosen = salient_patches(F.normalize(torch.ones(h, w, 3), dim=-1), 4)
    available = (h - 2) * (w - 2) if min(grid) > 2 else h * w
    assert len(chosen) == len(set(chosen)) == min(4, available)
    assert all(0 <= i < h * w for i in chosen)
