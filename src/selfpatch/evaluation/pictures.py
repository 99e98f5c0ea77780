"""Pictures that evaluations draw: images side by side, matches between them, and the files they are written to."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from selfpatch.core.atomic_io import clear_error
from selfpatch.core.safe_paths import path_below

CORRECT, WRONG, WHITE, BLACK = (0, 158, 115), (230, 75, 53), (255, 255, 255), (0, 0, 0)
"""Bluish green and vermilion, told apart with any kind of colour vision, white and black."""
RADIUS = 4
"""Radius of the disks at the ends of a match, in pixels."""


def side_by_side(panels: Sequence[Image.Image]) -> Image.Image:
    """Join RGB images of equal height to one row without gaps."""
    return Image.fromarray(np.hstack([np.asarray(panel) for panel in panels]))


WIDEST = 16
"""Largest width of an image in a picture, in heights."""


def scaled_to_height(image: Image.Image, height: int) -> Image.Image:
    """Resize an image (bicubic) to a height in pixels, its shape kept up to rounding.

    An image that is wider than `WIDEST` heights is squeezed to that width: a strip would take gigabytes.
    """
    width = round(image.width * height / image.height)
    return image.resize((min(max(1, width), WIDEST * height), height), Image.Resampling.BICUBIC)


def draw_match(
    draw: ImageDraw.ImageDraw, start: np.ndarray, end: np.ndarray, truth: np.ndarray, *, correct: bool
) -> None:
    """Draw a line between two points (x, y), green if the match is correct, and a white ring at the true point.

    A black rim keeps the ring visible on white.
    """
    colour = CORRECT if correct else WRONG
    draw.line([*start, *end], colour, width=2)
    draw.ellipse(_disk(start), fill=colour)
    draw.ellipse(_disk(end), fill=colour)
    draw.ellipse(_disk(truth, RADIUS + 1), outline=BLACK, width=4)
    draw.ellipse(_disk(truth), outline=WHITE, width=2)


def _disk(centre: np.ndarray, radius: int = RADIUS) -> list[float]:
    return [*(centre - radius), *(centre + radius)]


def save_picture(out: Path, name: str, picture: Image.Image) -> str:
    """Write a picture as out/pictures/NAME.jpg, where the name may have folders; return its path relative to `out`."""
    relative = path_below(Path("pictures"), f"{name}.jpg", "the data set").as_posix()
    with clear_error(out / relative):
        (out / relative).parent.mkdir(parents=True, exist_ok=True)
        picture.save(out / relative, quality=90)
    return relative
