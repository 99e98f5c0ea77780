"""J, F and statistics against plain dilation and hand-computed cases; test_evaluation_davis has the official."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_dilation

from selfpatch.evaluation.video_segmentation.metrics import (
    boundary_f,
    clip_statistics,
    mask_boundary,
    region_similarity,
)


def test_region_similarity() -> None:
    truth = np.zeros((3, 4, 5), bool)
    prediction = np.zeros((3, 4, 5), bool)
    truth[0, :2], prediction[0, 1:3] = True, True  # 5 of 15
    truth[1, 0, 0] = True
    assert region_similarity(truth, prediction).tolist() == [1 / 3, 0.0, 1.0]


def test_boundary_of_a_square_and_of_the_border() -> None:
    mask = np.zeros((4, 4), bool)
    mask[2:, 2:] = True
    expected = [[0, 0, 0, 0], [0, 1, 1, 1], [0, 1, 0, 0], [0, 1, 0, 0]]
    assert mask_boundary(mask).astype(int).tolist() == expected


@settings(max_examples=40)
@given(h=st.integers(2, 40), w=st.integers(2, 200), seed=st.integers(0, 1000), density=st.floats(0.001, 0.3))
def test_boundary_f_equals_dilation(h: int, w: int, seed: int, density: float) -> None:
    rng = np.random.default_rng(seed)
    truth, prediction = rng.random((2, 3, h, w)) < density
    expected = [_f_by_dilation(t, p) for t, p in zip(truth, prediction, strict=True)]
    np.testing.assert_allclose(boundary_f(truth, prediction), expected, rtol=1e-12)


def _f_by_dilation(truth: np.ndarray, prediction: np.ndarray) -> float:
    radius = math.ceil(0.008 * math.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2))
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disk = y**2 + x**2 <= radius**2
    t, p = mask_boundary(truth), mask_boundary(prediction)
    if not t.any() or not p.any():
        return float(t.any() == p.any())
    precision = (p & binary_dilation(t, disk)).sum() / p.sum()
    recall = (t & binary_dilation(p, disk)).sum() / t.sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def test_boundary_f_at_the_edge_of_the_tolerance() -> None:
    """A diagonal of 250 gives a radius of 2: a line two columns off matches wholly, three columns off not at all."""
    truth = np.zeros((150, 200), bool)
    truth[:, 100:] = True
    moved = np.stack([np.roll(truth, shift, axis=1) | truth for shift in (-2, -3)])
    assert boundary_f(np.stack([truth, truth]), moved).tolist() == [1.0, 0.0]


def test_statistics() -> None:
    """7 frames: 1, 2.5, 4, 5.5, 7 round to 1, 3, 4, 6, 7 (not half to even): first bin frames 1-3, last 6-7."""
    mean, recall, decay = clip_statistics(np.array([0.9, 0.8, 0.4, 0.5, 0.4, 0.3, 0.2]))
    assert mean == pytest.approx(3.5 / 7)
    assert recall == 2 / 7  # 0.5 itself is not above the threshold
    assert decay == pytest.approx(0.7 - 0.25)


def test_statistics_of_one_frame() -> None:
    assert clip_statistics(np.array([0.75])) == (0.75, 1.0, 0.0)
