"""Masks that hide patches of a global crop from the student (iBOT, arXiv 2111.07832, section 3 and appendix)."""

import math

import numpy as np

from selfpatch.config.sections import MaskConfig

ASPECT = (0.3, 1 / 0.3)
"""Range of a block's height / width, log-uniform (BEiT, arXiv 2106.08254)."""
BLOCK_TRIES = 10
SMALLEST_BLOCK = 3
"""Shorter side of the grid over the side of the smallest block that is drawn, if more patches remain."""


def draw_mask(config: MaskConfig, grid: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Draw a mask [h, w] bool of a grid (h, w) of patches, True where the student sees the mask token.

    Each crop needs a separate stream `rng`, because the number of draws depends on the mask.
    """
    unmasked, position = rng.random(2)
    if unmasked < config.share_unmasked:
        return np.zeros(grid, bool)
    num_hidden = (config.ratio[0] + (config.ratio[1] - config.ratio[0]) * position) * math.prod(grid)
    if config.kind == "block":
        return _blocks(grid, num_hidden, rng)
    return (np.argsort(rng.random(math.prod(grid)), kind="stable") < int(num_hidden)).reshape(grid)


def _blocks(grid: tuple[int, int], num_hidden: float, rng: np.random.Generator) -> np.ndarray:
    """Hide patches by blocks.

    Each block hides something new and at most what is still to be hidden. It ends when enough patches are hidden, or
    when `BLOCK_TRIES` draws in a row give no such block.
    """
    mask = np.zeros(grid, bool)
    failures = 0
    while mask.sum() < num_hidden and failures < BLOCK_TRIES:
        remaining = num_hidden - mask.sum()
        failures += 1
        if (inside := _draw_block(grid, remaining, rng)) is not None:
            block = mask[inside]
            if 0 < block.size - block.sum() <= remaining:
                block[:] = True
                failures = 0
    return mask


def _draw_block(grid: tuple[int, int], remaining: float, rng: np.random.Generator) -> tuple[slice, slice] | None:
    """Draw the rows and columns of a block; None if it is larger than the grid. A side may be 0."""
    smallest = (min(grid) // SMALLEST_BLOCK) ** 2
    size, shape, top, left = rng.random(4)
    area = max(0.0, smallest + (remaining - smallest) * size)
    aspect = math.exp(math.log(ASPECT[0]) + (math.log(ASPECT[1]) - math.log(ASPECT[0])) * shape)
    height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    if height >= grid[0] or width >= grid[1]:
        return None
    y, x = int(top * (grid[0] - height + 1)), int(left * (grid[1] - width + 1))
    return slice(y, y + height), slice(x, x + width)
