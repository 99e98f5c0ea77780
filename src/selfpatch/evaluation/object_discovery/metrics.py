"""CorLoc (Deselaers et al., 2010), the share of images whose box is correct, AP without classes, and baselines."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torchvision.ops import box_iou

from selfpatch.evaluation.object_discovery.dataset import Box
from selfpatch.evaluation.result import Cell

MIN_IOU = 0.5
THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""IoUs from which a detection counts as correct, over which COCO averages AP and AR."""
RECALLS = np.linspace(0, 1, 101)
"""Recalls at which COCO averages the precision."""


class ClassAgnostic(NamedTuple):
    """Precision and recall of boxes without classes, in [0, 1]."""

    ap50: float
    ap: float
    ar: float


def best_iou(found: Box, truth: Sequence[Box]) -> float:
    """Return the largest intersection over union of a box with the boxes of one or more objects."""
    boxes = (torch.tensor(b, dtype=torch.float64).reshape(-1, 4) for b in ([found], list(truth)))
    return float(box_iou(*boxes).max())


def method_row(method: str, found: Sequence[Sequence[Box]], truth: Sequence[Sequence[Box]]) -> dict[str, Cell]:
    """Return the row of a method, from the boxes that it found in each image and the true ones, one or more each.

    CorLoc and the mean IoU are those of the first box; it is correct from `MIN_IOU` on.
    """
    ious = np.array([best_iou(boxes[0], true) for boxes, true in zip(found, truth, strict=True)])
    scores = class_agnostic(found, truth)
    return {
        "method": method,
        "images": len(ious),
        "CorLoc": float(np.mean(ious >= MIN_IOU)),
        "mean IoU": float(np.mean(ious)),
        "boxes": sum(map(len, found)),
        "AP50": scores.ap50,
        "AP": scores.ap,
        "AR": scores.ar,
    }


def class_agnostic(found: Sequence[Sequence[Box]], truth: Sequence[Sequence[Box]]) -> ClassAgnostic:
    """Return AP at an IoU of 0.5, and COCO's AP and AR, of boxes of one class; those of CutLER (arXiv 2301.11320).

    ::

        all boxes in descending order of score: the first ones of all images, then the second ones, ...
        for each IoU of 0.5, 0.55, ..., 0.95:
            a box is correct if the true box that it overlaps most, of those that no earlier box of the image has,
            has this IoU with it or more; of equals, the last one
            AP = mean over the recalls 0, 0.01, ..., 1 of the largest precision at this recall or more
            AR = share of the true boxes that are found
        AP and AR = means over the IoUs

    The methods give no scores; within a rank, images are in their order. Every image has a true box, and crowds are
    none.
    """
    num_true = sum(map(len, truth))
    ranks = np.concatenate([np.arange(len(boxes)) for boxes in found])
    correct = np.concatenate([_correct(*pair) for pair in zip(found, truth, strict=True)])  # [detections, T]
    hits = correct[np.argsort(ranks, kind="stable")].cumsum(0)
    precision = hits / np.arange(1, len(hits) + 1)[:, None]
    precision = np.maximum.accumulate(precision[::-1])[::-1]  # largest at this recall or more
    of_thresholds = []
    for of_hits, of_precision in zip(hits.T, precision.T, strict=True):
        at = np.searchsorted(of_hits / num_true, RECALLS)
        of_thresholds.append(np.append(of_precision, 0.0)[at].mean())
    return ClassAgnostic(float(of_thresholds[0]), float(np.mean(of_thresholds)), float((hits[-1] / num_true).mean()))


def _correct(found: Sequence[Box], truth: Sequence[Box]) -> np.ndarray:
    """Return whether each box of an image, in descending order, is correct at each of `THRESHOLDS`, bool [n, T]."""
    boxes = (torch.tensor(list(b), dtype=torch.float64).reshape(-1, 4) for b in (found, truth))
    overlaps = box_iou(*boxes).numpy()  # [n, m]
    correct = np.zeros((len(found), len(THRESHOLDS)), bool)
    for number, threshold in enumerate(THRESHOLDS):
        left = overlaps.copy()
        for box, overlap in enumerate(left):
            best = int(np.flatnonzero(overlap == overlap.max())[-1])
            if overlap[best] >= min(threshold, 1 - 1e-10):
                correct[box, number] = True
                left[:, best] = -1
    return correct


def whole_image(height: int, width: int) -> Box:
    """Return the box of the whole image."""
    return 0, 0, width, height


def centre_box(height: int, width: int) -> Box:
    """Return a box in the middle of the image, with its aspect ratio and half its area."""
    margin = (1 - 0.5**0.5) / 2
    return margin * width, margin * height, (1 - margin) * width, (1 - margin) * height
