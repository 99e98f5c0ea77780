"""Pictures of matches between two views of an object."""

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from selfpatch.core.text import counted
from selfpatch.data.images import evenly_spread
from selfpatch.evaluation.geometric_correspondence.views import Surface
from selfpatch.evaluation.pictures import LINE_HEIGHT, MATCHES, draw_match, scaled_to_height, side_by_side, with_legend
from selfpatch.visualization.layout import to_image

HEIGHT, NUM_LINES = 320, 16
"""Side of both squares in pixels, and largest number of lines."""


def draw_matches(
    surfaces: tuple[Surface, Surface], points: tuple[Tensor, Tensor, Tensor], correct: np.ndarray, resolution: int
) -> Image.Image:
    """Draw lines between some matched points, green where they are correct, with captions and a legend.

    Points are those of `metrics.matched_points`, `correct` [m] is bool, and squares have `resolution` pixels.
    """
    captions = "first view", f"second view: {correct.sum()} of {counted(len(correct), 'point')} right"
    panels = [scaled_to_height(to_image(surface.pixels), HEIGHT) for surface in surfaces]
    sheet = side_by_side(panels, captions)
    draw, scale = ImageDraw.Draw(sheet), HEIGHT / resolution
    down, offset = np.array([0, LINE_HEIGHT]), np.array([HEIGHT, LINE_HEIGHT])
    first, second, truth = (
        surface.project(of_view).numpy() * scale
        for surface, of_view in zip((surfaces[0], surfaces[1], surfaces[1]), points, strict=True)
    )
    for i in evenly_spread(np.arange(len(correct)), NUM_LINES):
        draw_match(draw, first[i] + down, second[i] + offset, truth[i] + offset, correct=bool(correct[i]))
    return with_legend(sheet, MATCHES)
