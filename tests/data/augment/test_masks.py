"""Masks: how much they hide and in which shape; each crop draws its own."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfpatch.config.sections import MaskConfig
from selfpatch.data.augment.masks import batch_ratios, draw_mask
from selfpatch.data.augment.multicrop import generator


def masks(config: MaskConfig, grid: int | tuple[int, int], count: int = 400) -> np.ndarray:
    h, w = (grid, grid) if isinstance(grid, int) else grid
    return np.array([draw_mask(config, (h, w), generator(0, 0, sample, 0)) for sample in range(count)])


@given(
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kind=st.sampled_from(["block", "random"]),
    low=st.floats(0, 1),
    high=st.floats(0, 1),
    sample=st.integers(0, 1000),
)
def test_never_more_is_hidden_than_the_ratio_allows(
    grid: tuple[int, int], kind: Literal["block", "random"], low: float, high: float, sample: int
) -> None:
    low, high = sorted((low, high))
    mask = draw_mask(MaskConfig(kind=kind, ratio=(low, high), share_unmasked=0.0), grid, generator(3, 1, sample, 0))
    assert mask.shape == grid
    assert mask.dtype == bool
    assert mask.sum() <= high * mask.size + 1e-6


def test_random_masks_hide_exactly_their_share() -> None:
    hidden = masks(MaskConfig(kind="random", ratio=(0.3, 0.3), share_unmasked=0.0), 10).sum((1, 2))
    assert set(hidden) == {30}


@pytest.mark.parametrize("grid", [14, (10, 20), (20, 10)])
def test_blocks_come_close_to_their_share(grid: int | tuple[int, int]) -> None:
    hidden = masks(MaskConfig(kind="block", ratio=(0.1, 0.5), share_unmasked=0.0), grid).mean((1, 2))
    assert 0.24 < hidden.mean() < 0.33
    assert hidden.min() > 0.03
    assert hidden.max() <= 0.5


def test_masks_hide_every_part_of_a_wide_grid_alike() -> None:
    hidden = masks(MaskConfig(kind="block", ratio=(0.3, 0.3), share_unmasked=0.0), (6, 18), count=1500).mean(0)
    left, middle, right = hidden.reshape(6, 3, 6).mean((0, 2))
    assert left == pytest.approx(right, rel=0.1)
    assert middle >= 0.9 * max(left, right)  # more blocks fit around the middle


def test_blocks_hang_together_and_random_masks_do_not() -> None:
    """Share of hidden patches whose right neighbour is hidden too."""

    def togetherness(kind: Literal["block", "random"]) -> float:
        drawn = masks(MaskConfig(kind=kind, ratio=(0.3, 0.3), share_unmasked=0.0), 14)
        return (drawn[:, :, :-1] & drawn[:, :, 1:]).sum() / drawn[:, :, :-1].sum()

    assert togetherness("block") > 0.7
    assert togetherness("random") < 0.4


def test_some_crops_are_not_masked() -> None:
    unmasked = ~masks(MaskConfig(share_unmasked=0.5), 8).any((1, 2))
    assert 0.42 < unmasked.mean() < 0.58
    assert not masks(MaskConfig(share_unmasked=1.0), 8).any()


def test_the_crops_of_a_batch_divide_the_range_among_them() -> None:
    config = MaskConfig(ratio=(0.1, 0.5), share_unmasked=0.4, schedule="batch", smallest_block=4)
    ranges = batch_ratios(config, 11, generator(0, 0, 0, 0))
    masked = ranges[ranges[:, 1] > 0]
    assert len(masked) == 6, "6.6 of 11, rounded down"
    limits = np.linspace(0.1, 0.5, 7)
    np.testing.assert_allclose(sorted(masked.tolist()), np.stack([limits[:-1], limits[1:]], 1))
    assert ranges.tolist() != sorted(ranges.tolist()), "in random order"
    for kind in ("block", "random"):
        config = MaskConfig(kind=kind, share_unmasked=0.4, smallest_block=4)
        drawn = [draw_mask(config, (14, 14), generator(0, 0, i, 0), r) for i, r in enumerate(ranges.tolist())]
        assert all(mask.sum() <= r[1] * 196 for mask, r in zip(drawn, ranges, strict=True))
        assert [mask.any() for mask in drawn] == (ranges[:, 1] > 0).tolist()


def test_smaller_blocks_come_closer_to_a_small_share() -> None:
    missing = [
        0.1 * 196 - masks(MaskConfig(ratio=(0.1, 0.1), share_unmasked=0.0, smallest_block=size), 14).sum((1, 2)).mean()
        for size in (2, 12)
    ]
    assert missing[0] < missing[1]
