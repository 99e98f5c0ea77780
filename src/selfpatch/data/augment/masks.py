"""Which patches of a global crop the student does not see (iBOT, arXiv 2111.07832, section 3 and appendix)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

ASPECT = (0.3, 1 / 0.3)
"""Range of a block's height / width, drawn evenly in its logarithm (BEiT, arXiv 2106.08254)."""
BLOCK_TRIES = 10


@dataclass(frozen=True)
class MaskRecipe:
    """How masks are drawn.

    Attributes:
        grid: side of the patch grid.
        kind: rectangular blocks, or patches anywhere.
        ratio: range of the share of patches that is hidden.
        share_unmasked: probability that a crop is not masked at all.
    """

    grid: int
    kind: Literal["block", "random"] = "block"
    ratio: tuple[float, float] = (0.1, 0.5)
    share_unmasked: float = 0.5


def draw_mask(recipe: MaskRecipe, rng: np.random.Generator) -> np.ndarray:
    """[grid, grid] bool, True where the student is to see the mask token.

    Args:
        rng: a stream of its own for each crop; how much is drawn from it depends on the mask.
    """
    unmasked, place = rng.random(2)
    if unmasked < recipe.share_unmasked:
        return np.zeros((recipe.grid, recipe.grid), bool)
    wanted = (recipe.ratio[0] + (recipe.ratio[1] - recipe.ratio[0]) * place) * recipe.grid**2
    return _blocks(recipe.grid, wanted, rng) if recipe.kind == "block" else _anywhere(recipe.grid, wanted, rng)


def _anywhere(grid: int, wanted: float, rng: np.random.Generator) -> np.ndarray:
    return (np.argsort(rng.random(grid * grid), kind="stable") < int(wanted)).reshape(grid, grid)


def _blocks(grid: int, wanted: float, rng: np.random.Generator) -> np.ndarray:
    """Blocks are added, each hiding something new and none more than is still wanted, until enough is hidden or ten
    tries in a row find no such block."""
    mask = np.zeros((grid, grid), bool)
    smallest = (grid // 3) ** 2
    failures = 0
    while mask.sum() < wanted and failures < BLOCK_TRIES:
        left_over = wanted - mask.sum()
        size, shape, top, left = rng.random(4)
        area = smallest + (left_over - smallest) * size
        aspect = math.exp(math.log(ASPECT[0]) + (math.log(ASPECT[1]) - math.log(ASPECT[0])) * shape)
        height, width = round(math.sqrt(max(area, 0.0) * aspect)), round(math.sqrt(max(area, 0.0) / aspect))
        failures += 1
        if height < grid and width < grid:
            y, x = int(top * (grid - height + 1)), int(left * (grid - width + 1))
            block = mask[y : y + height, x : x + width]
            if 0 < block.size - block.sum() <= left_over:
                block[:] = True
                failures = 0
    return mask
