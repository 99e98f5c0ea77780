"""PCK, the percentage of correct keypoints (Yang and Ramanan 2013; as SPair-71k has it, arXiv 1908.10543)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from selfpatch.evaluation.correspondence.dataset import Pair
from selfpatch.evaluation.result import Cell

Threshold = Literal["box", "image"]


@dataclass(frozen=True)
class Scored:
    """One pair: `right` is bool [alphas, K], whether a keypoint was carried close enough."""

    pair: Pair
    right: np.ndarray


def correct(found: np.ndarray, truth: np.ndarray, size: tuple[float, float], alphas: Sequence[float]) -> np.ndarray:
    """Whether keypoints lie within alpha times the longer side: distance <= alpha * max(size).

    Args:
        found, truth: [K, 2].
        size: width and height of the target's box, or of its image.
        alphas: shares.

    Returns:
        bool [alphas, K].
    """
    distance = np.linalg.norm(found - truth, axis=1)
    return distance <= np.array(alphas)[:, None] * max(size)


def box_size(box: np.ndarray) -> tuple[float, float]:
    """[4] (left, top, right, bottom) -> right - left and bottom - top, as SPair-71k measures."""
    return float(box[2] - box[0]), float(box[3] - box[1])


def by_position(pair: Pair) -> np.ndarray:
    """The floor: each keypoint at the same place within the target's box as within the source's, [K, 2]."""
    source, target = (np.stack([box[:2], box[2:] - box[:2]]) for box in (pair.source_box, pair.target_box))
    share = np.divide(
        pair.source_points - source[0], source[1], out=np.full_like(pair.source_points, 0.5), where=source[1] > 0
    )
    return target[0] + share * target[1]


def pair_shares(scored: Scored, alphas: Sequence[float]) -> dict[str, float]:
    """PCK of one pair."""
    return {f"PCK@{alpha:g}": float(right.mean()) for alpha, right in zip(alphas, scored.right, strict=True)}


def category_rows(scored: Sequence[Scored], alphas: Sequence[float]) -> list[dict[str, Cell]]:
    """One row a category: PCK by image, the mean over its pairs of the pair's share, and by point, the share of all its
    keypoints."""
    rows: list[dict[str, Cell]] = []
    for category in sorted({one.pair.category for one in scored}):
        rights = [one.right for one in scored if one.pair.category == category]
        row: dict[str, Cell] = {"category": category, "pairs": len(rights), "points": sum(r.shape[1] for r in rights)}
        by_image = np.mean([right.mean(1) for right in rights], axis=0)
        by_point = np.concatenate(rights, axis=1).mean(1)
        for alpha, image, point in zip(alphas, by_image, by_point, strict=True):
            row |= {f"PCK@{alpha:g} per image": float(image), f"PCK@{alpha:g} per point": float(point)}
        rows.append(row)
    return rows


def table_rows(
    rows: Sequence[dict[str, Cell]], floors: Sequence[dict[str, Cell]], alphas: Sequence[float]
) -> list[dict[str, Cell]]:
    """`category_rows` of the features and of the floor, as a table that is not wide: a row a category and alpha."""
    return [
        {
            "category": row["category"],
            "pairs": row["pairs"],
            "points": row["points"],
            "alpha": f"{alpha:g}",
            "per image": row[f"PCK@{alpha:g} per image"],
            "per point": row[f"PCK@{alpha:g} per point"],
            "position, per point": floor[f"PCK@{alpha:g} per point"],
        }
        for row, floor in zip(rows, floors, strict=True)
        for alpha in alphas
    ]


def means_over_categories(rows: Sequence[dict[str, Cell]]) -> dict[str, float]:
    """Every category weighs the same, however many pairs it has."""
    names = [name for name in rows[0] if name.startswith("PCK")]
    return {name: float(np.mean([float(row[name]) for row in rows])) for name in names}
