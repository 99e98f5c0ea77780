"""Geometry of boxes (left, top, right, bottom) in plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = Sequence[float]


def offsets(box: Box, true: Box, stds: Box) -> list[float]:
    """Return the offsets of centre and size from a box to the true one, in units of `stds`."""
    (x, y, w, h), (tx, ty, tw, th) = (
        ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1]) for b in (box, true)
    )
    raw = (tx - x) / w, (ty - y) / h, math.log(tw / w), math.log(th / h)
    return [value / std for value, std in zip(raw, stds, strict=True)]


def moved(box: Box, move: Box, stds: Box) -> list[float]:
    """Return a box moved by offsets in units of `stds`."""
    width, height = box[2] - box[0], box[3] - box[1]
    dx, dy, dw, dh = (value * std for value, std in zip(move, stds, strict=True))
    x, y = (box[0] + box[2]) / 2 + dx * width, (box[1] + box[3]) / 2 + dy * height
    half_width, half_height = width * math.exp(dw) / 2, height * math.exp(dh) / 2
    return [x - half_width, y - half_height, x + half_width, y + half_height]


def iou(a: Box, b: Box) -> float:
    """Return the share of the union of two boxes that both cover."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return common / (sum(areas) - common)


def giou(a: Box, b: Box) -> float:
    """Return IoU - (hull - union) / hull (arXiv 1902.09630, algorithm 1)."""
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(width, 0.0) * max(height, 0.0)
    union = area_a + area_b - common
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return common / union - (hull - union) / hull
