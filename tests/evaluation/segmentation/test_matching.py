"""Clusters matched to classes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from selfpatch.evaluation.segmentation.config import Matching
from selfpatch.evaluation.segmentation.matching import classes_of_clusters


def test_matching_makes_the_most_pixels_correct() -> None:
    counts = np.random.default_rng(0).integers(0, 100, (5, 5))
    matched = classes_of_clusters(counts, "one_to_one")
    assert sorted(matched) == [*range(5)]
    best = counts[linear_sum_assignment(counts, maximize=True)].sum()
    assert sum(counts[matched[cluster], cluster] for cluster in range(5)) == best


@pytest.mark.parametrize(("matching", "expected"), [("precision", [0, 0, 2, 0]), ("iou", [0, 1, 2, 0])])
def test_several_clusters_may_share_a_class(matching: Matching, expected: list[int]) -> None:
    counts = np.array([[90, 11, 2, 0], [0, 10, 0, 0], [3, 0, 5, 0]])  # [C, K]; no pixel is in the last cluster
    assert classes_of_clusters(counts, matching).tolist() == expected
