"""Pictures of matched views: patches of the first view in the colour of right and wrong, lines to some of the matches.

Patches that are not tinted have no true position in the second view and do not count.
"""

import math

import numpy as np
from PIL import Image, ImageDraw

from selfpatch.evaluation.pictures import CORRECT, MATCHES, WRONG, draw_match, side_by_side, with_legend
from selfpatch.evaluation.view_matching.dataset import ViewPairs
from selfpatch.evaluation.view_matching.metrics import PatchMatches
from selfpatch.visualization.layout import to_image

SIDE, NUM_LINES = 448, 12
"""Side of a square view in pixels (others have as many pixels), and largest number of lines."""
OPACITY = 0.35
"""Opacity of the tint of a patch."""


def draw_matches(pairs: ViewPairs, matches: PatchMatches, number: int, patch_size: int) -> Image.Image:
    """Draw one of the pairs: green patches are found, vermilion ones are matched elsewhere.

    Lines lead from some of the patches that count to their matches; a white ring marks the true position.
    """
    views = [to_image(views[number]) for views in (pairs.views_a, pairs.views_b)]
    rows, columns = views[0].height // patch_size, views[0].width // patch_size
    stretch = math.sqrt(columns / rows)
    size = max(1, round(SIDE * stretch)), max(1, round(SIDE / stretch))
    correct, inside, _, match, targets = (values[number].numpy() for values in matches)
    tinted, plain = (view.resize(size, Image.Resampling.BICUBIC) for view in views)
    colours = np.where(correct[:, None], CORRECT, WRONG).reshape(rows, columns, 3).astype(np.uint8)
    opacity = (255 * OPACITY * inside).reshape(rows, columns).astype(np.uint8)
    colour_map, mask = (Image.fromarray(values).resize(size, 0) for values in (colours, opacity))
    tinted.paste(colour_map, mask=mask)
    sheet = side_by_side([tinted, plain])
    draw, offset = ImageDraw.Draw(sheet), np.array([size[0], 0])
    for patch in np.random.default_rng(0).permutation(np.flatnonzero(inside))[:NUM_LINES]:
        end, truth = _centre(match[patch], columns, size[0]) + offset, targets[patch] * size + offset
        draw_match(draw, _centre(patch, columns, size[0]), end, truth, correct=bool(correct[patch]))
    return with_legend(sheet, MATCHES)


def _centre(patch: int, columns: int, width: int) -> np.ndarray:
    """Return the centre (x, y) of a patch on the picture of its view."""
    return (np.array([patch % columns, patch // columns]) + 0.5) * width / columns
