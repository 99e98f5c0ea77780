"""Clusters matched to classes."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from selfpatch.evaluation.segmentation.kmeans import match_clusters


def test_matching_makes_the_most_pixels_correct() -> None:
    counts = np.random.default_rng(0).integers(0, 100, (5, 5))
    matched = match_clusters(counts)
    assert sorted(matched) == [*range(5)]
    best = counts[linear_sum_assignment(counts, maximize=True)].sum()
    assert sum(counts[matched[cluster], cluster] for cluster in range(5)) == best
