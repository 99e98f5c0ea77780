"""The measures of video object segmentation: region similarity J, boundary accuracy F and their statistics over a clip.

Source: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016, and
Pont-Tuset et al., "The 2017 DAVIS Challenge" (arXiv 1704.00675); details as in the official scorer.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree

BOUNDARY_TOLERANCE = 0.008
"""Of the image's diagonal: how far apart two boundary pixels may lie and still match."""
RECALL_THRESHOLD = 0.5


class Statistics(NamedTuple):
    """Of one measure of one object over the frames of a clip."""

    mean: float
    recall: float
    """Share of the frames above 0.5."""
    decay: float
    """Mean over the first quarter of the clip minus mean over the last."""


def region_similarity(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """J: intersection over union; 1 where both masks are empty.

    Args:
        truth: bool [..., H, W].
        prediction: bool [..., H, W].

    Returns:
        [...] float64.
    """
    intersection = (truth & prediction).sum(axis=(-2, -1))
    union = (truth | prediction).sum(axis=(-2, -1))
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0)


def boundary_f(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """F: harmonic mean of precision and recall of boundary pixels, matched within a disk of ceil(0.008 * diagonal).

    That a boundary meets the other one dilated by a disk is the same as that a pixel of the other one lies at most the
    disk's radius away, which a k-d tree over the few boundary pixels finds without touching the rest of the image.

    Args:
        truth: bool [..., H, W].
        prediction: bool [..., H, W].

    Returns:
        [...] float64. One empty boundary: 0; both empty: 1.
    """
    height, width = truth.shape[-2:]
    radius = math.ceil(BOUNDARY_TOLERANCE * math.hypot(height, width))
    pairs = zip(
        mask_boundary(truth).reshape(-1, height, width),
        mask_boundary(prediction).reshape(-1, height, width),
        strict=True,
    )
    scores = [_matched_f(np.argwhere(t), np.argwhere(p), radius) for t, p in pairs]
    return np.array(scores, np.float64).reshape(truth.shape[:-2])


def mask_boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from their right, lower or lower-right neighbour.

    The last row and column are compared along themselves only, the last corner with nothing.

    Args:
        mask: bool [..., H, W].

    Returns:
        bool [..., H, W].
    """
    boundary = np.zeros_like(mask)
    right = mask[..., :, :-1] ^ mask[..., :, 1:]
    below = mask[..., :-1, :] ^ mask[..., 1:, :]
    boundary[..., :, :-1] = right
    boundary[..., :-1, :] |= below
    boundary[..., :-1, :-1] |= mask[..., :-1, :-1] ^ mask[..., 1:, 1:]
    return boundary


def _matched_f(truth: np.ndarray, prediction: np.ndarray, radius: int) -> float:
    """truth [n, 2], prediction [m, 2]: places of boundary pixels."""
    if len(truth) == 0 or len(prediction) == 0:
        return float(len(truth) == len(prediction))
    precision, recall = _share_near(prediction, truth, radius), _share_near(truth, prediction, radius)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _share_near(points: np.ndarray, others: np.ndarray, radius: int) -> float:
    # Squared distances are whole numbers and the bound is strict: half of one more than radius**2 is exact.
    distance, _ = KDTree(others).query(points, distance_upper_bound=math.sqrt(radius**2 + 0.5))
    return float(np.isfinite(distance).mean())


def clip_statistics(values: np.ndarray) -> Statistics:
    """Mean, recall and decay of one object.

    Args:
        values: [n], one a frame, n >= 1.
    """
    # The scorer's four bins, each sharing its last frame with the next one; the + 1e-10 undoes rounding half to even.
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    first, last = values[edges[0] : edges[1] + 1], values[edges[3] : edges[4] + 1]
    return Statistics(
        mean=float(values.mean()),
        recall=float((values > RECALL_THRESHOLD).mean()),
        decay=float(first.mean() - last.mean()),
    )
