"""PCK, the percentage of correct keypoints (Yang and Ramanan 2013; as in SPair-71k, arXiv 1908.10543)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from selfpatch.evaluation.correspondence.dataset import Pair
from selfpatch.evaluation.result import Cell


class ScoredPair(NamedTuple):
    """One pair; `correct` is bool [alphas, K]: whether a keypoint was transferred close enough."""

    pair: Pair
    correct: np.ndarray


def within_threshold(
    found: np.ndarray, truth: np.ndarray, size: Sequence[float] | np.ndarray, alphas: Sequence[float]
) -> np.ndarray:
    """Return whether distance <= alpha * max(size), bool [alphas, K], for transferred and true keypoints [K, 2].

    `size` is the width and height of the target's box (right - left, as SPair-71k measures), or of its image.
    """
    distance = np.linalg.norm(found - truth, axis=1)
    return distance <= np.array(alphas)[:, None] * max(size)


def points_by_position(pair: Pair) -> np.ndarray:
    """Return the baseline's keypoints [K, 2]: the same relative position in the target's box as in the source's."""
    source, target = (np.stack([box[:2], box[2:] - box[:2]]) for box in (pair.source_box, pair.target_box))
    share = np.divide(
        pair.source_points - source[0], source[1], out=np.full_like(pair.source_points, 0.5), where=source[1] > 0
    )
    return target[0] + share * target[1]


def pair_pck(scored: ScoredPair, alphas: Sequence[float]) -> dict[str, float]:
    """Return the PCK of one pair by alpha."""
    return {f"PCK@{alpha:g}": float(correct.mean()) for alpha, correct in zip(alphas, scored.correct, strict=True)}


def category_rows(scored: Sequence[ScoredPair], alphas: Sequence[float]) -> list[dict[str, Cell]]:
    """Return one row per category, with PCK per image and PCK per point as `evaluate` defines them."""
    rows: list[dict[str, Cell]] = []
    for category in sorted({one.pair.category for one in scored}):
        correct = [one.correct for one in scored if one.pair.category == category]
        row: dict[str, Cell] = {"category": category, "pairs": len(correct), "points": sum(c.shape[1] for c in correct)}
        per_image = np.mean([one.mean(1) for one in correct], axis=0)
        per_point = np.concatenate(correct, axis=1).mean(1)
        for alpha, image, point in zip(alphas, per_image, per_point, strict=True):
            row |= {f"PCK@{alpha:g} per image": float(image), f"PCK@{alpha:g} per point": float(point)}
        rows.append(row)
    return rows


def table_rows(
    rows: Sequence[dict[str, Cell]], baseline_rows: Sequence[dict[str, Cell]], alphas: Sequence[float]
) -> list[dict[str, Cell]]:
    """Return `category_rows` of the features and of the baseline as a narrow table: a row per category and alpha."""
    return [
        {name: row[name] for name in ("category", "pairs", "points")}
        | {
            "alpha": f"{alpha:g}",
            "per image": row[f"PCK@{alpha:g} per image"],
            "per point": row[f"PCK@{alpha:g} per point"],
            "position, per point": baseline[f"PCK@{alpha:g} per point"],
        }
        for row, baseline in zip(rows, baseline_rows, strict=True)
        for alpha in alphas
    ]


def means_over_all(scored: Sequence[ScoredPair], alphas: Sequence[float]) -> dict[str, float]:
    """Return the means over all pairs and all points, whatever their categories (DIFT's averages)."""
    of_pairs = np.mean([one.correct.mean(1) for one in scored], axis=0)
    of_points = np.concatenate([one.correct for one in scored], axis=1).mean(1)
    return {f"PCK@{alpha:g} all pairs": float(value) for alpha, value in zip(alphas, of_pairs, strict=True)} | {
        f"PCK@{alpha:g} all points": float(value) for alpha, value in zip(alphas, of_points, strict=True)
    }


def means_by_viewpoint(scored: Sequence[ScoredPair], alphas: Sequence[float]) -> dict[str, float]:
    """Return the PCK per point, averaged over categories, of the pairs of each difference of viewpoints (Probe3D)."""
    means: dict[str, float] = {}
    for viewpoint in sorted({one.pair.viewpoint for one in scored if one.pair.viewpoint is not None}):
        of_viewpoint = [one for one in scored if one.pair.viewpoint == viewpoint]
        of_categories = means_over_categories(category_rows(of_viewpoint, alphas))
        means |= {
            f"PCK@{alpha:g} per point, viewpoint {viewpoint}": of_categories[f"PCK@{alpha:g} per point"]
            for alpha in alphas
        }
    return means


def means_over_categories(rows: Sequence[dict[str, Cell]]) -> dict[str, float]:
    """Return the means over categories, each of which weighs the same, however many pairs it has."""
    names = [name for name in rows[0] if name.startswith("PCK")]
    return {name: float(np.mean([float(row[name]) for row in rows])) for name in names}
