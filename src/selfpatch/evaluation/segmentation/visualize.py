"""Pictures of segmentations: image, labels and prediction side by side, one row for each image, and a legend."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from selfpatch.evaluation.pictures import captioned, legend, save_picture
from selfpatch.evaluation.segmentation.dataset import IGNORE

WIDTH, GAP, OPACITY = 320, 8, 153
"""Width of an image, pixels between two, and opacity of the colours, of 255."""
MAX_HEIGHT = 480
SHEET_WIDTH = 3 * WIDTH + 2 * GAP
CAPTIONS = ("image", "labels", "prediction")
BACKGROUND = "background"
"""Name of a class without a colour, as it covers most of many images."""


def _palette() -> np.ndarray:
    """Return colours [256, 3] uint8: hues a golden ratio of the circle apart, in three lightnesses; void is black."""
    number = np.arange(256)
    hsv = np.stack([number * 0.618034 % 1 * 255, 255 - number % 2 * 90, 255 - number // 2 % 3 * 60], axis=1)
    colours = np.array(Image.fromarray(hsv[None].astype(np.uint8), "HSV").convert("RGB"))[0]
    colours[IGNORE] = 0
    return colours


PALETTE = _palette()


class OverlayRow(NamedTuple):
    """An image, the image with its labels and with its prediction over it, and the class numbers that they show."""

    panels: list[Image.Image]
    classes: set[int]


def overlay_row(image: Image.Image, truth: np.ndarray, prediction: np.ndarray, names: Sequence[str] = ()) -> OverlayRow:
    """Return an RGB image, and the image with its labels and its prediction over it, in small.

    Both are [h, w] class numbers of one size, which need not be the image's. Void stays void in the prediction. A class
    that `names`, the name of each class, calls background has no colour.
    """
    size = WIDTH, min(MAX_HEIGHT, max(1, round(image.height * WIDTH / image.width)))
    small = image.resize(size, Image.Resampling.BICUBIC)
    maps = [
        np.asarray(Image.fromarray(classes.astype(np.int32)).resize(size, Image.Resampling.NEAREST))
        for classes in (truth, np.where(truth == IGNORE, IGNORE, prediction))
    ]
    plain = [number for number, name in enumerate(names) if name == BACKGROUND]
    return OverlayRow([small, *(_overlay(small, classes, plain) for classes in maps)], {*np.unique(maps)} - {*plain})


def save_rows(rows: Sequence[OverlayRow], names: Sequence[str], out: Path | None) -> list[str]:
    """Write rows as one picture below a folder, with a legend of the classes that they show, if there is any row.

    `names` holds the name of each class. Returns the path of the picture in the folder.
    """
    if out is None or not rows:
        return []
    heads = [[captioned(panel, text) for panel, text in zip(rows[0].panels, CAPTIONS, strict=True)]]
    panels = [*heads, *(row.panels for row in rows[1:])]
    shown = sorted(set.union(*(row.classes for row in rows)), key=lambda number: (number == IGNORE, number))
    key = legend(
        {_name(number, names): tuple(PALETTE[_colour(np.array(number))].tolist()) for number in shown}, SHEET_WIDTH
    )
    heights = [row[0].height for row in panels]
    sheet = Image.new("RGB", (SHEET_WIDTH, sum(heights) + GAP * len(heights) + key.height), (255, 255, 255))
    top = 0
    for row, height in zip(panels, heights, strict=True):
        for column, panel in enumerate(row):
            sheet.paste(panel, (column * (WIDTH + GAP), top))
        top += height + GAP
    sheet.paste(key, (0, top))
    return [save_picture(out, "segments", sheet)]


def _name(number: int, names: Sequence[str]) -> str:
    """Return the name of a class; clusters may be more than classes."""
    return "void" if number == IGNORE else names[number] if number < len(names) else f"cluster {number}"


def _colour(classes: np.ndarray) -> np.ndarray:
    """Return the palette's indices of class numbers: above 255 colours repeat; the number of void keeps its own."""
    return np.where(classes > IGNORE, classes % IGNORE, classes).astype(np.uint8)


def _overlay(image: Image.Image, classes: np.ndarray, plain: Sequence[int]) -> Image.Image:
    """Tint an image by the classes of its pixels, and leave out the classes in `plain`."""
    opacity = Image.fromarray(np.where(np.isin(classes, plain), 0, OPACITY).astype(np.uint8))
    return Image.composite(Image.fromarray(PALETTE[_colour(classes)]), image, opacity)
