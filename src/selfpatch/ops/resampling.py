"""Crop and resize of a batch as Pillow does, by two matrix products, and resize of images as OpenCV does."""

import math

import torch
from torch import Tensor

from selfpatch.config.sections import Resampling
from selfpatch.core.transfer import to_device

SUPPORT: dict[Resampling, float] = {"bicubic": 2.0, "bilinear": 1.0}
"""Radius of a filter's kernel, in pixels of the coarser of the two grids."""
WEIGHT_BITS = 11
"""Bits of OpenCV's weights of uint8 images: a weight of 1 is 2048."""


def crop_resize(images: Tensor, boxes: Tensor, sides: tuple[int, int], resampling: Resampling = "bicubic") -> Tensor:
    """Crop boxes, resize them to one size (antialiased), and mirror some.

        for each view v, image b and channel:
            view = round(rows[v, b] @ round(image[b] @ columns[v, b].T))

    `rows` and `columns` are the kernel's weights. They are zero outside of the box, which equals cropping first. Both
    products are rounded and clamped to [0, 255], as Pillow does.

    Args:
        images: [B, C, H, W] floating, of whole numbers in [0, 255]; products are computed in their type. Images smaller
            than H x W are padded with any finite values.
        boxes: [V, B, 5] float32 on the CPU: (left, top, width, height, mirrored) in (fractions of) pixels.
        sides: height S and width S' of a view in pixels.
        resampling: filter of the resize.

    Returns:
        [V, B, C, S, S'] of the images' type, whole numbers in [0, 255].
    """
    num_views, (batch, channels, height, width) = len(boxes), images.shape
    size_y, size_x = sides
    across, down = (num_taps(boxes[..., i].max().item() / size, resampling) for i, size in ((2, size_x), (3, size_y)))
    boxes = to_device(boxes.transpose(0, 1), images.device)
    left, top, box_width, box_height, mirrored = boxes.unbind(-1)  # [B, V] each
    columns = resize_weights(
        left, box_width, size_x, across, width, mirrored > 0, resampling=resampling
    )  # [B, V, S', W]
    rows = resize_weights(top, box_height, size_y, down, height, resampling=resampling)  # [B, V, S, H]
    columns, rows = columns.to(images.dtype), rows.to(images.dtype)
    narrow = _to_levels(images.flatten(1, 2) @ columns.flatten(1, 2).mT)  # [B, C * H, V * S']
    narrow = narrow.view(batch, channels, height, num_views, size_x)
    return _to_levels(torch.stack([rows[:, v, None] @ narrow[..., v, :] for v in range(num_views)]))


def _to_levels(values: Tensor) -> Tensor:
    """Round (halves up, as Pillow does) and clamp to [0, 255], in place."""
    return values.add_(0.5).floor_().clamp_(0, 255)


def num_taps(scale: float, resampling: Resampling = "bicubic") -> int:
    """Return how many pixels the kernel covers at most when `scale` pixels become one."""
    return math.ceil(2 * SUPPORT[resampling] * max(1.0, scale)) + 1


def resize_weights(
    start: Tensor,
    length: Tensor,
    size: int,
    taps: int,
    side: int,
    mirrored: Tensor | None = None,
    *,
    resampling: Resampling = "bicubic",
) -> Tensor:
    """Return the weight of each pixel of a line for each pixel of its resized box.

    As in Pillow, the kernel is widened if the box shrinks, cut off at the box's ends, and normalised to a sum of 1.

    Args:
        start: [...] float32, start of the box on each line, in pixels.
        length: [...] float32, length of the box, in pixels.
        size: length of the resized box in pixels.
        taps: `num_taps` of the largest length / size.
        side: length of the line in pixels.
        mirrored: [...] bool, whether the resized box is mirrored.
        resampling: filter of the resize.

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
    first = (start + centres - SUPPORT[resampling] * widening - 0.5).ceil()
    pixels = first[..., None] + torch.arange(taps, device=start.device)  # [..., size, taps]
    distance = (pixels - start[..., None] + 0.5 - centres[..., None]).abs() / widening[..., None]
    weights = cubic(distance, -0.5) if resampling == "bicubic" else (1 - distance).clamp(min=0)
    inside = (pixels > start[..., None] - 1) & (pixels < (start + length)[..., None])
    weights = torch.where(inside, weights, 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    line = weights.new_zeros(*weights.shape[:-1], side)
    return line.scatter_add_(-1, pixels.clamp(0, side - 1).long(), weights)  # weights outside are 0


def cubic(distance: Tensor, a: float) -> Tensor:
    """Evaluate Keys' kernel at distances >= 0 in samples; Pillow has a = -0.5, torch without antialias -0.75."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return torch.where(distance <= 1, near, torch.where(distance < SUPPORT["bicubic"], far, torch.zeros_like(distance)))


def resize_linear(images: Tensor, height: int, width: int) -> Tensor:
    """Resize uint8 images [..., H, W] bilinearly without antialias, level by level as `cv2.resize` does.

    OpenCV computes in integers, which rounds otherwise than floating point in one of a thousand levels:

        for each row of the image:  line = w0 * left pixel + w1 * right pixel      with weights of 11 bits
        for each level:             (w0 * (upper >> 4) >> 16) + (w1 * (lower >> 4) >> 16), rounded from 2 more bits
    """
    columns, across = _neighbours(images.shape[-1], width, images.device)
    rows, down = _neighbours(images.shape[-2], height, images.device)
    # Beyond the first and the last pixel of a line, but not of a column, OpenCV puts all the weight on one pixel.
    across = torch.where(columns[0] == columns[1], across.new_tensor([[1 << WEIGHT_BITS], [0]]), across)
    levels = images.int()
    lines = (levels[..., columns[0]] * across[0] + levels[..., columns[1]] * across[1]) >> 4
    upper, lower = ((lines[..., rows[side], :] * down[side, :, None]) >> 16 for side in (0, 1))
    return ((upper + lower + 2) >> 2).to(torch.uint8)


def _neighbours(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the two neighbours of each of `size` pixels among `length`, [2, size] int64, and their integer weights."""
    scale = 1 / (size / length)  # in this order, for the same rounding
    position = ((torch.arange(size, dtype=torch.double) + 0.5) * scale - 0.5).float()
    before = position.floor()
    second = position - before
    weights = (torch.stack([1 - second, second]) * (1 << WEIGHT_BITS)).round().int()
    indices = torch.stack([before, before + 1]).long().clamp(0, length - 1)
    return indices.to(device), weights.to(device)
