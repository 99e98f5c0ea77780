"""CorLoc (Deselaers et al., 2010), the share of images whose box is correct, and its baselines."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torchvision.ops import box_iou

from selfpatch.evaluation.object_discovery.dataset import Box
from selfpatch.evaluation.result import Cell

MIN_IOU = 0.5


def best_iou(found: Box, truth: Sequence[Box]) -> float:
    """Return the largest intersection over union of a box with the boxes of one or more objects."""
    boxes = (torch.tensor(b, dtype=torch.float64).reshape(-1, 4) for b in ([found], list(truth)))
    return float(box_iou(*boxes).max())


def method_rows(ious: Mapping[str, Sequence[float]]) -> list[dict[str, Cell]]:
    """Return one row per method, from the best IoU in each image; a box is correct from `MIN_IOU` on."""
    return [
        {
            "method": method,
            "images": len(values),
            "CorLoc": float(np.mean(np.array(values) >= MIN_IOU)),
            "mean IoU": float(np.mean(values)),
        }
        for method, values in ious.items()
    ]


def whole_image(height: int, width: int) -> Box:
    """Return the box of the whole image."""
    return 0, 0, width, height


def centre_box(height: int, width: int) -> Box:
    """Return a box in the middle of the image, with its aspect ratio and half its area."""
    margin = (1 - 0.5**0.5) / 2
    return margin * width, margin * height, (1 - margin) * width, (1 - margin) * height
