"""Masks that hide patches of a global crop from the student (iBOT, arXiv 2111.07832, section 3 and appendix)."""

import math

import numpy as np

from selfpatch.config.sections import MaskConfig

ASPECT = (0.3, 1 / 0.3)
"""Range of a block's height / width, log-uniform (BEiT, arXiv 2106.08254)."""
BLOCK_TRIES = 10
SMALLEST_BLOCK = 3
"""Shorter side of the grid over the side of the smallest block that is drawn, if more patches remain."""


def batch_ratios(config: MaskConfig, num_crops: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the range (low, high) of each crop's hidden fraction, [num_crops, 2], for the schedule `batch`.

        M = num_crops * (1 - share_unmasked), rounded down
        r = M + 1 evenly spaced numbers from ratio[0] to ratio[1]
        M crops, chosen at random, get one range (r[i], r[i + 1]) each, the others (0, 0)

    These are DINOv2's masks (arXiv 2304.07193; `collate.py` of its code), whose number and sizes differ little from
    batch to batch.
    """
    num_masked = int(num_crops * (1 - config.share_unmasked))
    limits = np.linspace(*config.ratio, num_masked + 1)
    ranges = np.zeros((num_crops, 2))
    ranges[:num_masked] = np.stack([limits[:-1], limits[1:]], 1)
    return ranges[np.argsort(rng.random(num_crops), kind="stable")]


def draw_mask(
    config: MaskConfig, grid: tuple[int, int], rng: np.random.Generator, ratio: tuple[float, float] | None = None
) -> np.ndarray:
    """Draw a mask [h, w] bool of a grid (h, w) of patches, True where the student sees the mask token.

    Each crop needs a separate stream `rng`, because the number of draws depends on the mask. `ratio` is the crop's row
    of `batch_ratios`; if None, the crop draws whether it is masked, and its ratio from the configured range.
    """
    unmasked, position = rng.random(2)
    if (unmasked < config.share_unmasked) if ratio is None else (ratio[1] == 0):
        return np.zeros(grid, bool)
    low, high = config.ratio if ratio is None else ratio
    num_hidden = (low + (high - low) * position) * math.prod(grid)
    if config.kind == "block":
        # DINOv2's code rounds the number down, iBOT's does not.
        smallest = config.smallest_block or (min(grid) // SMALLEST_BLOCK) ** 2
        return _blocks(grid, num_hidden if ratio is None else int(num_hidden), smallest, rng)
    return (np.argsort(rng.random(math.prod(grid)), kind="stable") < int(num_hidden)).reshape(grid)


def _blocks(grid: tuple[int, int], num_hidden: float, smallest: int, rng: np.random.Generator) -> np.ndarray:
    """Hide patches by blocks of at least `smallest` patches, if as many remain.

    Each block hides something new and at most what is still to be hidden. It ends when enough patches are hidden, or
    when `BLOCK_TRIES` draws in a row give no such block.
    """
    mask = np.zeros(grid, bool)
    failures = 0
    while mask.sum() < num_hidden and failures < BLOCK_TRIES:
        remaining = num_hidden - mask.sum()
        failures += 1
        if (inside := _draw_block(grid, remaining, smallest, rng)) is not None:
            block = mask[inside]
            if 0 < block.size - block.sum() <= remaining:
                block[:] = True
                failures = 0
    return mask


def _draw_block(
    grid: tuple[int, int], remaining: float, smallest: int, rng: np.random.Generator
) -> tuple[slice, slice] | None:
    """Draw the rows and columns of a block; None if it is larger than the grid. A side may be 0."""
    size, shape, top, left = rng.random(4)
    area = max(0.0, smallest + (remaining - smallest) * size)
    aspect = math.exp(math.log(ASPECT[0]) + (math.log(ASPECT[1]) - math.log(ASPECT[0])) * shape)
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if height >= grid[0] or width >= grid[1]:
        return None
    y, x = int(top * (grid[0] - height + 1)), int(left * (grid[1] - width + 1))
    return slice(y, y + height), slice(x, x + width)
