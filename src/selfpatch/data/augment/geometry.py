"""Conversion of points between crops and images, for SERE's overlap grids and for pictures of crops.

Crop coordinates run from 0 at the left (upper) edge of the crop, as it is seen, flipped or not, to 1 at the right
(lower) edge. Image coordinates are pixels from the upper left corner. Both refer to edges, not pixel centres, so the
size of the rendered crop does not matter.
"""

import torch
from torch import Tensor


def crop_to_image(points: Tensor, boxes: Tensor) -> Tensor:
    """Convert points [..., P, 2] (x, y) of crops to pixels of their images.

    `boxes` [..., 5] are as in `Views.boxes`; their leading dimensions broadcast with the points'.
    """
    corner, size, flipped = _unpack(boxes)
    return corner + _mirror(points, flipped) * size


def image_to_crop(points: Tensor, boxes: Tensor) -> Tensor:
    """Convert points of images to points of crops, the inverse of `crop_to_image`; outside a crop is outside [0, 1]."""
    corner, size, flipped = _unpack(boxes)
    return _mirror((points - corner) / size, flipped)


def _unpack(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = boxes.unsqueeze(-2)  # [..., 1, 5], the same for all points
    return rows[..., 0:2], rows[..., 2:4], rows[..., 4] > 0.5


def _mirror(points: Tensor, flipped: Tensor) -> Tensor:
    x, y = points.unbind(-1)
    x, y = torch.broadcast_tensors(torch.where(flipped, 1 - x, x), y)
    return torch.stack([x, y], dim=-1)
