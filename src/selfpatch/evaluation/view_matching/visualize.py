"""Pictures of matched views: patches of the first view in the colour of right and wrong, lines to some of the matches.

Patches that are not tinted have no true position in the second view and do not count.
"""

import numpy as np
from PIL import Image, ImageDraw

from selfpatch.evaluation.pictures import CORRECT, WRONG, draw_match, side_by_side
from selfpatch.evaluation.view_matching.dataset import ViewPairs
from selfpatch.evaluation.view_matching.metrics import PatchMatches
from selfpatch.visualization.layout import to_image

SIDE, NUM_LINES = 448, 12
"""Side of each view in pixels, and largest number of lines."""
OPACITY = 0.35
"""Opacity of the tint of a patch."""


def draw_matches(pairs: ViewPairs, matches: PatchMatches, number: int, patch_size: int) -> Image.Image:
    """Draw one of the pairs: green patches are found, vermilion ones are matched elsewhere.

    Lines lead from some of the patches that count to their matches; a white ring marks the true position.
    """
    views = [to_image(views[number]) for views in (pairs.views_a, pairs.views_b)]
    grid = views[0].width // patch_size
    correct, inside, _, match, targets = (values[number].numpy() for values in matches)
    tinted, plain = (view.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for view in views)
    colours = np.where(correct[:, None], CORRECT, WRONG).reshape(grid, grid, 3).astype(np.uint8)
    opacity = (255 * OPACITY * inside).reshape(grid, grid).astype(np.uint8)
    colour_map, mask = (Image.fromarray(values).resize((SIDE, SIDE), 0) for values in (colours, opacity))
    tinted.paste(colour_map, mask=mask)
    sheet = side_by_side([tinted, plain])
    draw, offset = ImageDraw.Draw(sheet), np.array([SIDE, 0])
    for patch in np.random.default_rng(0).permutation(np.flatnonzero(inside))[:NUM_LINES]:
        end, truth = _centre(match[patch], grid) + offset, targets[patch] * SIDE + offset
        draw_match(draw, _centre(patch, grid), end, truth, correct=bool(correct[patch]))
    return sheet


def _centre(patch: int, grid: int) -> np.ndarray:
    """Return the centre (x, y) of a patch on the picture of its view."""
    return (np.array([patch % grid, patch // grid]) + 0.5) * SIDE / grid
