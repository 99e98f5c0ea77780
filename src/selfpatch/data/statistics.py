"""Mean and standard deviation of each channel, measured from images of any number of channels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from selfpatch.data.augment.pillow import to_tensor
from selfpatch.data.decode.pillow import Picture
from selfpatch.data.images import evenly_spread, read_each
from selfpatch.data.sources.index import ImageIndex
from selfpatch.ops.images import to_unit_range

SAMPLE = 1000
"""Number of images that are read; more would hardly change the third digit."""
SMALLEST_STD = 1e-6
"""Smallest deviation, relative to the mean where that is above 1: a constant channel becomes 0, not infinite."""


class ChannelStatistics(NamedTuple):
    """Mean and deviation as `ops.images.normalise` takes them."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def channel_statistics(
    index: ImageIndex, indices: Sequence[int] | np.ndarray, channels: int, *, sample: int = SAMPLE
) -> ChannelStatistics:
    """Measure the channels in the scale that networks see, where 8 and 16 bits are in [0, 1].

    The algorithm::

        for each image of an evenly spread sample:
            mean_i, square_i = means of x and of x**2 over its pixels, for each channel
        mean = mean of mean_i,  std = sqrt(mean of square_i - mean**2)

    Every image counts the same whatever its size, as in training. Unreadable ones are skipped; NoneReadable is raised
    if there are no others. The result is the same on every process.
    """

    def moments(picture: Picture, _: int) -> np.ndarray:  # [2, C] about zero
        pixels = to_unit_range(to_tensor(picture)).flatten(1)
        # In float64 the difference of the two moments keeps ten digits where the mean is a thousand deviations off.
        return torch.stack([pixels.mean(1, dtype=torch.float64), pixels.double().square().mean(1)]).numpy()

    _, moments_of_images = read_each(index, evenly_spread(np.asarray(indices, np.int64), sample), channels, moments)
    mean, square = np.mean(moments_of_images, axis=0)
    std = np.sqrt(np.maximum(square - mean**2, 0))
    smallest = SMALLEST_STD * np.maximum(np.abs(mean), 1)
    return ChannelStatistics(tuple(mean.tolist()), tuple(np.maximum(std, smallest).tolist()))
