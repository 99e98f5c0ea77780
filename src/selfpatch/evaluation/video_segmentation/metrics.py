"""Region similarity J and boundary accuracy F of masks, aggregated over frames and objects as the official scorer does.

Source: Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", CVPR 2016, and
Pont-Tuset et al., "The 2017 DAVIS Challenge" (arXiv 1704.00675).
"""

import math
from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree

from selfpatch.evaluation.result import Cell
from selfpatch.evaluation.video_segmentation.clip import Clip

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


def frame_scores(clip: Clip, frame: int, prediction: np.ndarray) -> np.ndarray:
    """Return J and F of each object in one frame, float64 [2, objects]; NaN for those that are not scored in it.

    Args:
        clip: the clip.
        frame: index of the frame.
        prediction: predicted object numbers, uint8 [H, W].

    Raises:
        ValueError: the prediction has another size than the truth.
    """
    truth, where = clip.mask(frame), f"frame {clip.frames[frame]} of {clip.name}"
    if prediction.shape != truth.shape:
        raise ValueError(f"the mask of {where} has shape {prediction.shape}; the truth has {truth.shape}")
    scores = np.full((2, clip.num_objects), np.nan)
    numbers = np.array(clip.scored_objects(frame))
    objects = truth == numbers[:, None, None], prediction == numbers[:, None, None]
    scores[:, numbers - 1] = region_similarity(*objects), boundary_f(*objects)
    return scores


def object_rows(clip: Clip, scores: list[np.ndarray]) -> list[dict[str, Cell]]:
    """Return one row per object, named by its value in the files, from the scores [2, objects] of each frame.

    An object without a scored frame has no row.
    """
    rows: list[dict[str, Cell]] = []
    if not scores:
        return rows
    for index, (value, of_object) in enumerate(
        zip(clip.objects, np.stack(scores, axis=-1).swapaxes(0, 1), strict=True)
    ):
        j, f = of_object[:, ~np.isnan(of_object[0])]
        if not len(j):
            continue
        row: dict[str, Cell] = {"sequence": clip.name, "object": value, **clip.columns(index + 1)}
        for name, values in [("J", j), ("F", f)]:
            row |= {f"{name}-{field.title()}": value for field, value in clip_statistics(values)._asdict().items()}
        rows.append(row)
    return rows


def means_over_objects(rows: list[dict[str, Cell]]) -> dict[str, float]:
    """Return means over objects, not over sequences, in the official scorer's order and names."""
    names = [name for name, value in rows[0].items() if isinstance(value, float)]
    means = {name: float(np.mean([float(row[name]) for row in rows])) for name in names}
    return {"J&F-Mean": (means["J-Mean"] + means["F-Mean"]) / 2, **means}


def seen_and_unseen(rows: list[dict[str, Cell]]) -> dict[str, float]:
    """Return YouTube-VOS' J and F over objects of seen and of unseen classes, and their mean G.

    G needs objects of both; nothing is returned if it is not known which classes are seen.
    """
    means: dict[str, float] = {}
    for classes in ("seen", "unseen"):
        found = [row for row in rows if row.get("classes") == classes]
        for name in ("J", "F") if found else ():
            means[f"{name}-{classes}"] = float(np.mean([float(row[f"{name}-Mean"]) for row in found]))
    return {"G": float(np.mean([*means.values()])), **means} if len(means) == 4 else means
