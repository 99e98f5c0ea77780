"""Mean and standard deviation of each channel, measured from the images: ImageNet's are of red, green and blue."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from selfpatch.data.augment.pillow import to_tensor
from selfpatch.data.decode.pillow import BadImage, read_picture
from selfpatch.data.images import evenly_spread
from selfpatch.data.sources.index import ImageIndex
from selfpatch.ops.images import in_unit_range

SAMPLE = 1000
"""Images that are read; more would hardly move the third digit."""
SMALLEST_STD = 1e-6
"""Of a channel that hardly varies, as a share of its size, or by itself: a constant one becomes 0, not infinite."""


class ChannelStatistics(NamedTuple):
    """What `ops.images.normalise` takes."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def channel_statistics(
    index: ImageIndex, places: Sequence[int] | np.ndarray, channels: int, *, sample: int = SAMPLE
) -> ChannelStatistics:
    """Measures the channels, in the scale that networks see: 8 and 16 bits in [0, 1]::

        for each image of a sample, evenly spread over the places:
            mean_i, square_i = means of x and of x**2 over its pixels, for each channel
        mean = mean of mean_i,  std = sqrt(mean of square_i - mean**2)

    Every image counts the same, whatever its size, as it does in training. Equal images give equal numbers on every
    process. Only as many images as there are threads are held at once.

    Args:
        index: the images.
        places: those to measure; unreadable ones are skipped.
        channels: as `read_picture` takes them.
        sample: how many images are read at most.

    Raises:
        ValueError: none of the images can be read.
    """
    chosen = evenly_spread(np.asarray(places, np.int64), sample)

    def moments(place: int) -> np.ndarray | BadImage:
        """[2, C] float64, about zero."""
        try:
            pixels = in_unit_range(to_tensor(read_picture(index.file(place), channels))).flatten(1)
        except BadImage as error:
            return error
        # In float64 the difference of the two moments keeps ten digits where the mean is a thousand deviations off.
        return torch.stack([pixels.mean(1, dtype=torch.float64), pixels.double().square().mean(1)]).numpy()

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = list(pool.map(moments, chosen.tolist()))
    readable = [each for each in found if not isinstance(each, BadImage)]
    if not readable:
        example = f", e.g. {found[0]}" if found else ""
        raise ValueError(f"none of {len(found)} images can be read{example}; give images that can be read")
    mean, square = np.mean(readable, axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    floor = SMALLEST_STD * np.maximum(np.abs(mean), 1)
    return ChannelStatistics(tuple(mean.tolist()), tuple(np.maximum(std, floor).tolist()))
