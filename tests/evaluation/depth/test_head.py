"""Bins by plain loops, and the head's shape and seed."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from selfpatch.evaluation.depth.head import DepthHead, bins_to_depth
from tests.helpers.largest_tensor import LargestTensor


def test_bins_equal_a_plain_loop() -> None:
    logits = torch.randn(1, 5, 2, 3, generator=torch.Generator().manual_seed(0))
    weights = [max(x, 0) + 0.1 for x in logits[0, :, 1, 2].tolist()]
    expected = sum(w * (1 + i * (9 - 1) / 4) for i, w in enumerate(weights)) / sum(weights)
    got = bins_to_depth(logits, (1.0, 9.0))
    assert got.shape == (1, 1, 2, 3)
    assert float(got[0, 0, 1, 2]) == pytest.approx(expected, rel=1e-5)


def test_depths_stay_inside_of_the_limits() -> None:
    depth = bins_to_depth(1000 * torch.randn(2, 7, 4, 4), (0.5, 3.0))
    assert 0.5 <= depth.min() <= depth.max() <= 3


def test_the_head_enlarges_and_depends_on_its_seed() -> None:
    features = torch.randn(2, 6, 3, 4)
    heads = [DepthHead(6, 8, (0.001, 10.0), batch_norm=True, upsample=4, seed=seed).eval() for seed in (0, 0, 1)]
    depths = [head(features) for head in heads]
    assert depths[0].shape == (2, 1, 12, 16)
    assert torch.equal(depths[0], depths[1])
    assert not torch.equal(depths[0], depths[2])


def test_enlarged_logits_are_those_of_enlarged_features() -> None:
    """DINOv2's head enlarges features, of which there are more."""
    features = torch.randn(2, 6, 3, 4)
    head = DepthHead(6, 4, (1.0, 9.0), batch_norm=False, upsample=4, seed=0)
    enlarged = F.interpolate(features, scale_factor=4, mode="bilinear")
    torch.testing.assert_close(head(features), bins_to_depth(head.to_bins(enlarged), (1.0, 9.0)))
    with LargestTensor() as largest:
        head(features)
    assert largest.elements == 2 * 4 * 12 * 16
