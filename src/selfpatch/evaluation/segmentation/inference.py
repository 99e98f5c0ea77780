"""Classes of images of any size, from a function that gives logits for whole images or windows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from selfpatch.core.types import Encoder
from selfpatch.evaluation.lazy_image import LazyImage
from selfpatch.evaluation.segmentation.augmentation import fitted_size, resize_antialiased, resize_bilinear
from selfpatch.evaluation.segmentation.config import SegmentationConfig
from selfpatch.ops.images import normalise

Predict = Callable[[LazyImage], Tensor]
"""Function of an image that returns its class numbers, int64 [h, w], or [R, h, w] of R runs, at the size of its
labels."""
LogitsFunction = Callable[[Tensor], Tensor]
"""Function of normalised images [1, 3, H, W] that returns logits [1, C, H', W'] of any resolution."""

MAX_LOGITS = 2**26
"""Logits that exist at once in `classes_at`: 256 MB."""
MAX_LOGITS_CPU = 2**20
"""Logits that exist at once in `classes_at` on a CPU: 4 MB, which its caches hold until they are reduced."""


@dataclass(frozen=True)
class FittedMethod:
    """A segmentation method after it has learned."""

    predict: Predict
    config: SegmentationConfig
    """Settings, with derived values filled in."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further values to record."""
    reduce_labels: Callable[[np.ndarray], np.ndarray] | None = None
    """Change of labels before they are compared, where a protocol scores at another size."""
    notes: Sequence[str] = ()
    """Caveats for the result."""
    runs: int = 1
    """Number of predictions for each image, whose scores are averaged."""


def image_predictor(
    logits_fn: LogitsFunction,
    encoder: Encoder,
    num_classes: int,
    *,
    short: int,
    size: int,
    stride: int | None,
    antialias: bool = False,
) -> Predict:
    """Return a function that segments an image of short side `short`, in windows of `size` if there is a stride."""

    @torch.no_grad()
    def predict(image: LazyImage) -> Tensor:
        normalised = load_normalised(encoder, image.rgb, short, antialias=antialias)
        if stride is None:
            logits = logits_fn(normalised)
        else:
            logits = predict_sliding(logits_fn, normalised, size, stride, num_classes)
        return classes_at(logits, (image.height, image.width))

    return predict


def load_normalised(encoder: Encoder, image: Image.Image, short: int, *, antialias: bool = False) -> Tensor:
    """Return an RGB image, resized by `fitted_size` and normalised, as [1, 3, H, W] on the encoder's device."""
    size = fitted_size(image.height, image.width, short)
    pixels = resize_antialiased(image, size) if antialias else resize_bilinear(np.asarray(image), size)
    batch = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()[None]
    return normalise(batch.to(encoder.device), encoder.mean, encoder.std)


@torch.no_grad()
def predict_sliding(logits_fn: LogitsFunction, image: Tensor, size: int, stride: int, num_classes: int) -> Tensor:
    """Return the logits of an image that the network sees through a window.

        for each window, `stride` pixels from the last one, the last of a row and of a column flush with the edge:
            sum[window] += logits(window);  count[window] += 1
        sum / count

    A smaller image [1, 3, H, W] is padded with zeros on the right and below. Only the sum [1, C, H, W] and the logits
    of one window exist at once. Raise ValueError if the stride leaves gaps.
    """
    if not 1 <= stride <= size:
        raise ValueError(f"windows of {size} pixels, {stride} apart, leave gaps; use a stride of 1 to {size}")
    height, width = image.shape[-2:]
    padded = F.pad(image, (0, max(size - width, 0), 0, max(size - height, 0)))
    total = padded.new_zeros(1, num_classes, *padded.shape[-2:])
    count = padded.new_zeros(padded.shape[-2:])
    starts = ([min(i, side - size) for i in range(0, side - size + stride, stride)] for side in padded.shape[-2:])
    for top, left in product(*starts):
        window = (..., slice(top, top + size), slice(left, left + size))
        logits = logits_fn(padded[window]).float()
        if logits.shape[-2:] != (size, size):
            logits = F.interpolate(logits, (size, size), mode="bilinear")
        total[window] += logits.to(total.dtype)
        count[window] += 1
    return (total / count)[..., :height, :width]


@torch.no_grad()
def classes_at(logits: Tensor, size: tuple[int, int], *, max_logits: int = MAX_LOGITS) -> Tensor:
    """Return the class, int64 [H, W], of the largest of the logits [1, C, h, w] after resizing to `size` (bilinear).

    This is done one strip of rows at a time, so that the resized logits of a large image never exist all at once. A
    strip has at most `max_logits` logits, but one row at least.
    """
    height, width = size
    channels, old_height = logits.shape[1:3]
    position = ((torch.arange(height, device=logits.device) + 0.5) * (old_height / height) - 0.5).clamp_min(0)
    before = position.long().clamp_max(old_height - 1)
    after = (before + 1).clamp_max(old_height - 1)
    share = (position - before)[:, None]
    strips = []
    most = min(max_logits, MAX_LOGITS_CPU) if logits.device.type == "cpu" else max_logits
    for rows in range(0, height, step := max(1, most // (channels * width))):
        part = slice(rows, rows + step)
        lowest, highest = int(before[part][0]), int(after[part][-1]) + 1
        wide = F.interpolate(logits[:, :, lowest:highest], (highest - lowest, width), mode="bilinear")[0]
        strip, below = (wide.index_select(1, rows[part] - lowest) for rows in (before, after))
        strip.lerp_(below, share[part])
        strips.append(strip.max(0).indices)  # four times as fast as argmax on a CPU
    return torch.cat(strips)
