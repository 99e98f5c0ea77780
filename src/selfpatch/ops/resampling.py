"""Crops of a batch of images, each with a box of its own, resized as Pillow resizes: two matrix products for all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from selfpatch.ops.images import sent

SUPPORT = 2.0
"""Reach of the bicubic kernel, in pixels of the coarser of the two grids."""


def crop_resize(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Crops boxes, resizes them to one size (bicubic, antialiased), and mirrors some.

    For each view v, image b and channel:
        view = round(rows[v, b] @ round(image[b] @ columns[v, b].T))
    where `rows` and `columns` are the kernel's weights, zero outside of the box, so that nothing from beside it enters:
    the same as cropping first. Both products are rounded and cut off to [0, 255], as Pillow does.

    Args:
        images: [B, C, H, W] floating, of whole numbers in [0, 255]; products are computed in their type. Images smaller
            than H x W are padded with anything finite.
        boxes: [V, B, 5] float32 on the CPU: (left, top, width, height, mirrored) in pixels, perhaps fractions of them.
        size: side of a view.

    Returns:
        [V, B, C, size, size] as the images, of whole numbers in [0, 255].
    """
    num_views, (batch, channels, height, width) = len(boxes), images.shape
    across, down = (num_taps(boxes[..., side].max().item() / size) for side in (2, 3))
    boxes = sent(boxes.transpose(0, 1), images.device)
    left, top, box_width, box_height, mirrored = boxes.unbind(-1)  # [B, V] each
    columns = resize_weights(left, box_width, size, across, width, mirrored > 0).to(images.dtype)  # [B, V, S, W]
    rows = resize_weights(top, box_height, size, down, height).to(images.dtype)  # [B, V, S, H]
    narrow = _to_levels(images.flatten(1, 2) @ columns.flatten(1, 2).mT)  # [B, C * H, V * S]
    narrow = narrow.view(batch, channels, height, num_views, size)
    return _to_levels(torch.stack([rows[:, v, None] @ narrow[..., v, :] for v in range(num_views)]))


def _to_levels(values: Tensor) -> Tensor:
    """Rounded, halves up as Pillow does, and cut off to [0, 255]; in place."""
    return values.add_(0.5).floor_().clamp_(0, 255)


def num_taps(scale: float) -> int:
    """Pixels that the kernel reaches at most, where so many become one."""
    return math.ceil(2 * SUPPORT * max(1.0, scale)) + 1


def resize_weights(
    start: Tensor, length: Tensor, size: int, taps: int, side: int, mirrored: Tensor | None = None
) -> Tensor:
    """What each pixel of a line counts for each pixel of its resized box.

    Pillow's way: the kernel is widened where the box shrinks, cut off at the box's ends, and what is left of it adds up
    to 1.

    Args:
        start, length: [...] float32, of the box on each line, in pixels.
        size: pixels of the resized box.
        taps: `num_taps` of the largest length / size.
        side: pixels of the line.
        mirrored: [...] bool, whether the resized box is turned round.

    Returns:
        [..., size, side] float32.
    """
    steps = torch.arange(size, device=start.device).expand(*start.shape, size)
    if mirrored is not None:
        steps = torch.where(mirrored[..., None], size - 1 - steps, steps)
    start, length = start[..., None], length[..., None]
    scale = length / size
    widening = scale.clamp(min=1)
    centres = (steps + 0.5) * scale  # [..., size] counted from the box's start
    first = (start + centres - SUPPORT * widening - 0.5).ceil()
    pixels = first[..., None] + torch.arange(taps, device=start.device)  # [..., size, taps]
    distance = (pixels - start[..., None] + 0.5 - centres[..., None]).abs() / widening[..., None]
    weights = cubic(distance, -0.5)
    inside = (pixels > start[..., None] - 1) & (pixels < (start + length)[..., None])
    weights = torch.where(inside, weights, 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    line = weights.new_zeros(*weights.shape[:-1], side)
    return line.scatter_add_(-1, pixels.clamp(0, side - 1).long(), weights)  # what was cut off adds nothing


def cubic(distance: Tensor, a: float) -> Tensor:
    """Keys' kernel of a distance >= 0, in samples; Pillow's BICUBIC has a = -0.5, torch's without antialias -0.75."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, torch.where(distance < SUPPORT, far, torch.zeros_like(distance)))
