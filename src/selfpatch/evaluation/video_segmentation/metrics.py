"""Scores of clips as the official DAVIS-2017 scorer aggregates J and F (Pont-Tuset et al., arXiv 1704.00675)."""

from __future__ import annotations

import numpy as np

from selfpatch.evaluation.result import Cell
from selfpatch.evaluation.video_segmentation.dataset import Clip
from selfpatch.evaluation.video_segmentation.j_and_f import boundary_f, clip_statistics, region_similarity


def frame_scores(clip: Clip, frame: int, prediction: np.ndarray) -> np.ndarray:
    """Return J and F of each object in one frame, float64 [2, objects], for predicted object numbers, uint8 [H, W].

    Raises:
        ValueError: the prediction has another size than the truth, or more objects than the clip.
    """
    truth, where = clip.mask(frame), f"frame {clip.frames[frame]} of {clip.name}"
    if prediction.shape != truth.shape:
        raise ValueError(f"the mask of {where} has shape {prediction.shape}; the truth has {truth.shape}")
    if prediction.max() > clip.num_objects:
        raise ValueError(f"the mask of {where} has object {prediction.max()}; the clip has {clip.num_objects}")
    numbers = np.arange(1, clip.num_objects + 1)[:, None, None]
    objects = truth == numbers, prediction == numbers
    return np.stack([region_similarity(*objects), boundary_f(*objects)])


def scored_frames(clip: Clip) -> range:
    """Return the indices of all frames but the first, which is given, and the last."""
    return range(1, len(clip.frames) - 1)


def object_rows(clip: Clip, scores: list[np.ndarray]) -> list[dict[str, Cell]]:
    """Return one row per object from the scores [2, objects] of each frame; no row without a scored frame."""
    rows: list[dict[str, Cell]] = []
    if not scores:
        return rows
    for number, (j, f) in enumerate(np.stack(scores, axis=-1).swapaxes(0, 1), start=1):
        row: dict[str, Cell] = {"sequence": clip.name, "object": number}
        for name, values in [("J", j), ("F", f)]:
            row |= {f"{name}-{field.title()}": value for field, value in clip_statistics(values)._asdict().items()}
        rows.append(row)
    return rows


def means_over_objects(rows: list[dict[str, Cell]]) -> dict[str, float]:
    """Return means over objects, not over sequences, in the official scorer's order and names."""
    names = [name for name in rows[0] if name not in ("sequence", "object")]
    means = {name: float(np.mean([float(row[name]) for row in rows])) for name in names}
    return {"J&F-Mean": (means["J-Mean"] + means["F-Mean"]) / 2, **means}
