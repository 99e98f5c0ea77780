"""Region similarity J and boundary accuracy F of binary masks, and their statistics over the frames of a clip.

Source: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016, and
Pont-Tuset et al., "The 2017 DAVIS Challenge" (arXiv 1704.00675); details as in the official scorer.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree

BOUNDARY_TOLERANCE = 0.008
"""Largest distance of two matching boundary pixels, as a share of the image's diagonal."""
RECALL_THRESHOLD = 0.5


class Statistics(NamedTuple):
    """Statistics of J or F of one object over the frames of a clip."""

    mean: float
    recall: float
    """Share of the frames with a score above 0.5."""
    decay: float
    """Mean over the first quarter of the clip minus the mean over the last."""


def region_similarity(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Return J of masks, bool [..., H, W]: the intersection over union, float64 [...]; 1 where both masks are empty."""
    intersection = (truth & prediction).sum(axis=(-2, -1))
    union = (truth | prediction).sum(axis=(-2, -1))
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0)


def boundary_f(truth: np.ndarray, prediction: np.ndarray) -> np.ndarray:
    """Return F, the harmonic mean of precision and recall of boundary pixels within a radius of ceil(0.008 * diagonal).

    The official scorer dilates one boundary by a disk and intersects it with the other. A boundary pixel is in that
    intersection if the other boundary has a pixel within the disk's radius. A k-d tree over the few boundary pixels
    finds these without touching the rest of the image.

    Masks are bool [..., H, W], scores float64 [...]: 0 if one boundary is empty, 1 if both are.
    """
    height, width = truth.shape[-2:]
    radius = math.ceil(BOUNDARY_TOLERANCE * math.hypot(height, width))
    boundaries = (mask_boundary(mask).reshape(-1, height, width) for mask in (truth, prediction))
    scores = [_matched_f(np.argwhere(t), np.argwhere(p), radius) for t, p in zip(*boundaries, strict=True)]
    return np.array(scores, np.float64).reshape(truth.shape[:-2])


def mask_boundary(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of masks, bool [..., H, W], that differ from their right, lower or lower-right neighbour.

    Pixels of the last row and column have one neighbour only, and the last corner has none.
    """
    boundary = np.zeros_like(mask)
    right = mask[..., :, :-1] ^ mask[..., :, 1:]
    below = mask[..., :-1, :] ^ mask[..., 1:, :]
    boundary[..., :, :-1] = right
    boundary[..., :-1, :] |= below
    boundary[..., :-1, :-1] |= mask[..., :-1, :-1] ^ mask[..., 1:, 1:]
    return boundary


def _matched_f(truth: np.ndarray, prediction: np.ndarray, radius: int) -> float:
    """Return F of two boundaries, given as pixel coordinates: truth [n, 2], prediction [m, 2]."""
    if len(truth) == 0 or len(prediction) == 0:
        return float(len(truth) == len(prediction))
    precision, recall = _share_near(prediction, truth, radius), _share_near(truth, prediction, radius)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _share_near(points: np.ndarray, others: np.ndarray, radius: int) -> float:
    # Squared distances are integers and the bound is strict, so radius**2 + 0.5 includes exactly radius**2.
    distance, _ = KDTree(others).query(points, distance_upper_bound=math.sqrt(radius**2 + 0.5))
    return float(np.isfinite(distance).mean())


def clip_statistics(values: np.ndarray) -> Statistics:
    """Return mean, recall and decay of one object's J or F in each frame, [n] with n >= 1."""
    # The scorer's four bins; neighbours share a frame. Adding 1e-10 undoes rounding half to even.
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(int) - 1
    first, last = values[edges[0] : edges[1] + 1], values[edges[3] : edges[4] + 1]
    recall = (values > RECALL_THRESHOLD).mean()
    return Statistics(float(values.mean()), float(recall), float(first.mean() - last.mean()))
