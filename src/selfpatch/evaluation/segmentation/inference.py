"""From a network that takes pieces of one size to the classes of images of any size."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfpatch.evaluation.segmentation.augmentation import fitted_size, resize_bilinear

LogitsFunction = Callable[[Tensor], Tensor]
"""Normalised images [1, 3, H, W] -> logits [1, C, H', W'] of any resolution."""

MAX_LOGITS = 2**26
"""That `classes_at` holds at once: 256 MB."""


def fit_image(image: Image.Image, short: int, long: int) -> Tensor:
    """An RGB image resized so that its short side is `short`, or its long side `long` where that is less.

    Returns:
        uint8 [3, H, W].
    """
    size = fitted_size(image.height, image.width, short, long)
    pixels = resize_bilinear(np.asarray(image), size, (slice(None), slice(None)))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@torch.no_grad()
def predict_whole(logits_fn: LogitsFunction, image: Tensor, stride: int = 1) -> Tensor:
    """Logits of an image that the network sees as a whole.

    Args:
        logits_fn: the network.
        image: normalised [1, 3, H, W].
        stride: that both sides must be multiples of, such as the side of a patch. The image is padded with zeros on the
            right and below; the logits there are thrown away.

    Returns:
        [1, C, H, W].
    """
    height, width = image.shape[-2:]
    padded = _pad_to(image, -(-height // stride) * stride, -(-width // stride) * stride)
    return _logits_at_size(logits_fn, padded)[..., :height, :width]


@torch.no_grad()
def predict_sliding(logits_fn: LogitsFunction, image: Tensor, size: int, stride: int, num_classes: int) -> Tensor:
    """Logits of an image that the network sees through a window::

        for each window, `stride` pixels from the last one, the last of a row and of a column flush with the edge:
            sum[window] += logits(window);  count[window] += 1
        sum / count

    An image that is smaller than the window is padded with zeros on the right and below. Beside one window's logits
    only the sum is held.

    Args:
        logits_fn: the network; it is given one window at a time.
        image: normalised [1, 3, H, W].
        size: side of the window.
        stride: from one window to the next, at most `size`.
        num_classes: C.

    Returns:
        [1, C, H, W].

    Raises:
        ValueError: the stride leaves gaps.
    """
    if not 1 <= stride <= size:
        raise ValueError(f"windows of {size} pixels, {stride} apart, leave gaps; use a stride of 1 to {size}")
    height, width = image.shape[-2:]
    padded = _pad_to(image, max(height, size), max(width, size))
    total = padded.new_zeros(1, num_classes, *padded.shape[-2:])
    count = padded.new_zeros(padded.shape[-2:])
    for top, left in product(*(_starts(side, size, stride) for side in padded.shape[-2:])):
        window = (..., slice(top, top + size), slice(left, left + size))
        total[window] += _logits_at_size(logits_fn, padded[window]).to(total.dtype)
        count[window] += 1
    return (total / count)[..., :height, :width]


def _starts(side: int, size: int, stride: int) -> list[int]:
    """Where windows begin along a side of `side` >= `size` pixels."""
    return [min(start, side - size) for start in range(0, side - size + stride, stride)]


def _pad_to(image: Tensor, height: int, width: int) -> Tensor:
    return F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]))


def _logits_at_size(logits_fn: LogitsFunction, images: Tensor) -> Tensor:
    logits = logits_fn(images).float()
    if logits.shape[-2:] == images.shape[-2:]:
        return logits
    return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)


@torch.no_grad()
def classes_at(logits: Tensor, size: tuple[int, int], *, max_logits: int = MAX_LOGITS) -> Tensor:
    """The class with the largest logit once they are resized to `size` (bilinear), a strip of rows at a time, so that
    the resized logits of a large image never exist all at once.

    Args:
        logits: [1, C, h, w].
        size: (H, W).
        max_logits: that a strip may have; it has a row at least.

    Returns:
        int64 [H, W].
    """
    height, width = size
    channels, old_height = logits.shape[1:3]
    place = ((torch.arange(height, device=logits.device) + 0.5) * (old_height / height) - 0.5).clamp_min(0)
    before = place.long().clamp_max(old_height - 1)
    after = (before + 1).clamp_max(old_height - 1)
    share = (place - before)[:, None]
    strips = []
    for rows in range(0, height, step := max(1, max_logits // (channels * width))):
        part = slice(rows, rows + step)
        lowest, highest = int(before[part][0]), int(after[part][-1]) + 1
        wide = F.interpolate(logits[:, :, lowest:highest], (highest - lowest, width), mode="bilinear")[0]
        strip = torch.lerp(wide[:, before[part] - lowest], wide[:, after[part] - lowest], share[part])
        strips.append(strip.argmax(0))
    return torch.cat(strips)
