"""The foreground of Leopart against scipy's filters and components."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torchvision.transforms.v2.functional import gaussian_blur

from selfpatch.ops.foreground import attended_patches, class_attention, without_small_components
from selfpatch.ops.rope import rope_periods, rope_rotation


def by_labels(mask: np.ndarray) -> np.ndarray:
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    sizes = ndimage.sum(mask, labels, range(1, count + 1))
    return np.isin(labels, 1 + np.flatnonzero(np.asarray(sizes) > 2))


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_components_of_one_and_two_cells_go(share: float) -> None:
    masks = torch.rand(40, 6, 9, generator=torch.manual_seed(0)) < share
    expected = np.stack([by_labels(mask) for mask in masks.numpy()])
    assert 0 < expected.sum() < masks.sum()
    assert without_small_components(masks).numpy().tolist() == expected.tolist()


def test_the_foreground_is_that_of_the_loop() -> None:
    attention = torch.rand(5, 3, 8, 7, generator=torch.manual_seed(1)) ** 4
    for image, found in zip(attention, attended_patches(attention, 0.6), strict=True):
        blurred = gaussian_blur(image.mean(0)[None, None], [7, 7], [0.6, 0.6])[0, 0].flatten().tolist()
        kept, held = set(), 0.0
        for i in sorted(range(len(blurred)), key=blurred.__getitem__, reverse=True):
            if held < 0.6 * sum(blurred):
                kept.add(i)
            held += blurred[i]
        mask = np.array([i in kept for i in range(len(blurred))]).reshape(8, 7)
        assert found.numpy().tolist() == by_labels(mask).tolist()


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (3, 8)])
def test_small_grids_have_a_foreground_or_none(grid: tuple[int, int]) -> None:
    mask = attended_patches(torch.rand(2, 2, *grid, generator=torch.manual_seed(2)))
    assert mask.shape == (2, *grid)
    assert mask.dtype == torch.bool


@pytest.mark.parametrize("rotated", [False, True])
def test_autocast_changes_neither_attention_nor_foreground(rotated: bool) -> None:
    generator = torch.manual_seed(2)
    projected = torch.randn(8, 1 + 14 * 14, 3, 3, 8, generator=generator)
    rotation = rope_rotation(14, 14, rope_periods(8, 100.0)) if rotated else None
    attention = class_attention(projected, rotation)
    maps = attention[..., 1:].unflatten(-1, (14, 14))
    expected = attended_patches(maps)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(class_attention(projected, rotation), attention)
        assert torch.equal(attended_patches(maps), expected)
