"""The official semi-supervised scores of DAVIS-2017 (Pont-Tuset et al., arXiv 1704.00675)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfpatch.evaluation.result import Cell, Provenance, Result
from selfpatch.evaluation.video_segmentation.dataset import Clip, Year, open_clips, read_mask
from selfpatch.evaluation.video_segmentation.j_and_f import boundary_f, clip_statistics, region_similarity


def score(
    results: str | Path, data: str | Path, *, year: Year | None = None, sequences: Sequence[str] | None = None
) -> Result:
    """Scores a folder of ready-made masks, <sequence>/00000.png, from whatever method.

    Args:
        results: the folder; masks of the first and the last frame are not needed.
        data: DAVIS tree; its images are not needed.
        year, sequences: see `open_clips`. A result of some sequences only is scored by naming them.

    Raises:
        ValueError: a sequence or a mask is missing, a mask has another size than the truth or more objects, or no
            sequence has a frame to score.
    """
    clips = open_clips(data, year=year, sequences=sequences)
    missing = [clip.name for clip in clips if not (Path(results) / clip.name).is_dir()]
    if missing:
        raise ValueError(f"{results} has no results for {', '.join(missing)}; add them, or name the sequences to score")
    rows: dict[str, list[dict[str, Cell]]] = {}
    for clip in clips:
        clip.require_masks()
        paths = [Path(results) / clip.name / f"{frame}.png" for frame in clip.frames]
        scores = [frame_scores(clip, frame, read_mask(paths[frame], clip.year)) for frame in scored_frames(clip)]
        rows[clip.name] = object_rows(clip, scores)
    settings = {"results": str(results), "data": str(data), "year": clips[0].year, "sequences": [c.name for c in clips]}
    if not any(rows.values()):
        raise ValueError(f"no sequence of {', '.join(rows)} has 3 frames: the first and the last are not scored")
    return scored(rows, settings)


def scored(
    rows: Mapping[str, list[dict[str, Cell]]],
    settings: Mapping[str, Any],
    weights: Provenance | None = None,
    **others: Any,
) -> Result:
    """The result of all clips.

    Args:
        rows: by sequence, those of its objects; none for a sequence of fewer than three frames.
        others: further fields of the result.
    """
    per_sequence = {name: means_over_objects(objects) for name, objects in rows.items() if objects}
    every = [row for objects in rows.values() for row in objects]
    metrics = means_over_objects(every) if every else {}
    return Result("davis", metrics, every, settings, weights, per_image=per_sequence, **others)


def frame_scores(clip: Clip, frame: int, prediction: np.ndarray) -> np.ndarray:
    """J and F of each object in one frame.

    Args:
        clip: the truth.
        frame: number of the frame.
        prediction: uint8 [H, W] object numbers.

    Returns:
        [2, objects] float64.

    Raises:
        ValueError: the prediction has another size than the truth, or a number above the clip's objects.
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
    """All frames but the first, which is given, and the last."""
    return range(1, len(clip.frames) - 1)


def object_rows(clip: Clip, scores: list[np.ndarray]) -> list[dict[str, Cell]]:
    """One row an object, from [2, objects] a frame; none without a scored frame."""
    rows: list[dict[str, Cell]] = []
    if not scores:
        return rows
    for number, (j, f) in enumerate(np.stack(scores, axis=-1).swapaxes(0, 1), start=1):
        row: dict[str, Cell] = {"sequence": clip.name, "object": number}
        for name, values in [("J", j), ("F", f)]:
            mean, recall, decay = clip_statistics(values)
            row |= {f"{name}-Mean": mean, f"{name}-Recall": recall, f"{name}-Decay": decay}
        rows.append(row)
    return rows


def means_over_objects(rows: list[dict[str, Cell]]) -> dict[str, float]:
    """Means over objects, not over sequences, in the official scorer's order and names."""
    names = [name for name in rows[0] if name not in ("sequence", "object")]
    means = {name: float(np.mean([float(row[name]) for row in rows])) for name in names}
    return {"J&F-Mean": (means["J-Mean"] + means["F-Mean"]) / 2, **means}
