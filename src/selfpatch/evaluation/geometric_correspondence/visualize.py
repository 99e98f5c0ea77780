"""Pictures of matches between two views of an object."""

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from selfpatch.data.images import evenly_spread
from selfpatch.evaluation.geometric_correspondence.views import Surface
from selfpatch.evaluation.pictures import draw_match, scaled_to_height, side_by_side
from selfpatch.visualization.layout import to_image

HEIGHT, NUM_LINES = 320, 16
"""Side of both squares in pixels, and largest number of lines."""


def draw_matches(
    surfaces: tuple[Surface, Surface], points: tuple[Tensor, Tensor, Tensor], correct: np.ndarray, resolution: int
) -> Image.Image:
    """Draw lines between some matched points, green where they are correct; a white ring marks the true point.

    Points are those of `metrics.matched_points`, `correct` [m] is bool, and squares have `resolution` pixels.
    """
    sheet = side_by_side([scaled_to_height(to_image(surface.pixels), HEIGHT) for surface in surfaces])
    draw, offset, scale = ImageDraw.Draw(sheet), np.array([HEIGHT, 0]), HEIGHT / resolution
    first, second, truth = (
        surface.project(of_view).numpy() * scale
        for surface, of_view in zip((surfaces[0], surfaces[1], surfaces[1]), points, strict=True)
    )
    for i in evenly_spread(np.arange(len(correct)), NUM_LINES):
        draw_match(draw, first[i], second[i] + offset, truth[i] + offset, correct=bool(correct[i]))
    return sheet
