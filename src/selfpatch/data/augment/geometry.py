"""Points of a crop and points of its image: where SERE's overlap grids and the pictures of crops come from.

A crop's own coordinates run from 0 at its left (upper) edge to 1 at its right (lower) edge, as it is seen, flipped or
not. An image's are pixels from its upper left corner. Edges, not pixel centres, so the size a crop is rendered at does
not matter.
"""

from __future__ import annotations

import torch
from torch import Tensor


def crop_to_image(points: Tensor, boxes: Tensor) -> Tensor:
    """Where points of crops lie in their images.

    Args:
        points: [..., P, 2] (x, y) in crop coordinates.
        boxes: [..., 5] (left, top, width, height, flipped); leading dimensions broadcast with those of the points.

    Returns:
        [..., P, 2] (x, y) in pixels of the image.
    """
    corner, size, flipped = _unpack(boxes)
    return corner + _mirror(points, flipped) * size


def image_to_crop(points: Tensor, boxes: Tensor) -> Tensor:
    """Where points of images lie in crops of them: the inverse of `crop_to_image`; outside [0, 1] if outside the crop.

    Args:
        points: [..., P, 2] (x, y) in pixels of the image.
        boxes: [..., 5] (left, top, width, height, flipped); leading dimensions broadcast with those of the points.

    Returns:
        [..., P, 2] (x, y) in crop coordinates.
    """
    corner, size, flipped = _unpack(boxes)
    return _mirror((points - corner) / size, flipped)


def _unpack(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = boxes.unsqueeze(-2)  # [..., 1, 5], the same for all points
    return rows[..., 0:2], rows[..., 2:4], rows[..., 4] > 0.5


def _mirror(points: Tensor, flipped: Tensor) -> Tensor:
    x, y = points.unbind(-1)
    x, y = torch.broadcast_tensors(torch.where(flipped, 1 - x, x), y)
    return torch.stack([x, y], dim=-1)
