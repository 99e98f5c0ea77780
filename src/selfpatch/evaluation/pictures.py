"""Pictures that evaluations draw: images side by side, matches between them, and the files they are written to."""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from selfpatch.core.atomic_io import clear_error
from selfpatch.core.safe_paths import path_below
from selfpatch.core.text import visible

CORRECT, WRONG, WHITE, BLACK = (0, 158, 115), (230, 75, 53), (255, 255, 255), (0, 0, 0)
"""Bluish green and vermilion, told apart with any kind of colour vision, white and black."""
MATCHES = {"right": CORRECT, "wrong": WRONG, "true position (ring)": WHITE}
"""Legend of pictures of matches."""
RADIUS = 4
"""Radius of the disks at the ends of a match, in pixels."""


def side_by_side(panels: Sequence[Image.Image], captions: Sequence[str] = ()) -> Image.Image:
    """Join RGB images of equal height to one row without gaps, each below its caption if there are captions."""
    if captions:
        panels = [captioned(panel, caption) for panel, caption in zip(panels, captions, strict=True)]
    return Image.fromarray(np.hstack([np.asarray(panel) for panel in panels]))


MAX_NAME_LENGTH = 50
"""Largest number of characters of an item's name in the name of its picture, of at most four bytes each."""
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


TEXT_SIZE, LINE_HEIGHT = 14, 24
"""Size of texts, and height of a line, in pixels."""


@functools.cache
def typeface() -> ImageFont.FreeTypeFont:
    """Return the typeface of texts on pictures, which matplotlib includes."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", TEXT_SIZE)


def captioned(image: Image.Image, caption: str) -> Image.Image:
    """Return an RGB image below a line of text, whose end is cut off where it is too wide."""
    framed = Image.new("RGB", (image.width, image.height + LINE_HEIGHT), WHITE)
    framed.paste(image, (0, LINE_HEIGHT))
    text = ImageDraw.Draw(framed)
    text.text((4, LINE_HEIGHT // 2), visible(caption), BLACK, typeface(), anchor="lm")
    return framed


def legend(entries: Mapping[str, tuple[int, ...]], width: int) -> Image.Image:
    """Return an RGB image of a width with a swatch of its colour before each name, on as many lines as they need."""
    places, x, line = [], 0, 0
    for name, colour in entries.items():
        needed = LINE_HEIGHT + round(typeface().getlength(visible(name))) + 18
        if x and x + needed > width:
            x, line = 0, line + 1
        places.append((x, line * LINE_HEIGHT, visible(name), colour))
        x += needed
    image = Image.new("RGB", (width, (line + 1) * LINE_HEIGHT), WHITE)
    draw = ImageDraw.Draw(image)
    for left, top, name, colour in places:
        draw.rectangle((left, top + 4, left + 16, top + LINE_HEIGHT - 5), colour, BLACK)
        draw.text((left + LINE_HEIGHT, top + LINE_HEIGHT // 2), name, BLACK, typeface(), anchor="lm")
    return image


def with_legend(image: Image.Image, entries: Mapping[str, tuple[int, ...]]) -> Image.Image:
    """Return an RGB image above the legend of its colours."""
    key = legend(entries, image.width)
    sheet = Image.new("RGB", (image.width, image.height + key.height), WHITE)
    sheet.paste(image, (0, 0))
    sheet.paste(key, (0, image.height))
    return sheet


def _disk(centre: np.ndarray, radius: int = RADIUS) -> list[float]:
    return [*(centre - radius), *(centre + radius)]


def numbered(number: int, name: str) -> str:
    """Return the name of an item's picture, `00003-dogs_1`: its number keeps it apart, whatever the items are called.

    The name may have folders and an ending, and characters that some file systems do not have.
    """
    plain = re.sub(r"[^\w .()+-]", "_", PurePosixPath(name).with_suffix("").as_posix())
    return f"{number:05d}-{plain[-MAX_NAME_LENGTH:]}"


def save_picture(out: Path, name: str, picture: Image.Image) -> str:
    """Write a picture as out/pictures/NAME.jpg, where the name may have folders; return its path relative to `out`.

    Names of items go through `numbered`: two may differ only by a folder or an ending.
    """
    relative = path_below(Path("pictures"), f"{name}.jpg", "the data set").as_posix()
    with clear_error(out / relative):
        (out / relative).parent.mkdir(parents=True, exist_ok=True)
        picture.save(out / relative, quality=90)
    return relative
