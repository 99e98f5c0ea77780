"""Pictures of segmentations: image, labels and prediction side by side, one row for each image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from selfpatch.core.atomic_io import clear_error
from selfpatch.evaluation.segmentation.dataset import IGNORE

WIDTH, GAP, OPACITY = 320, 8, 0.6
MAX_HEIGHT = 480
FILE = "pictures/segments.png"


def _palette() -> np.ndarray:
    """Return colours [256, 3] uint8: hues a golden ratio of the circle apart, in three lightnesses; void is black."""
    number = np.arange(256)
    hsv = np.stack([number * 0.618034 % 1 * 255, 255 - number % 2 * 90, 255 - number // 2 % 3 * 60], axis=1)
    colours = np.array(Image.fromarray(hsv[None].astype(np.uint8), "HSV").convert("RGB"))[0]
    colours[IGNORE] = 0
    return colours


PALETTE = _palette()


def overlay_row(image: Image.Image, truth: np.ndarray, prediction: np.ndarray) -> list[Image.Image]:
    """Return an RGB image, and the image with its labels and its prediction over it, in small.

    Both are [h, w] class numbers of one size, which need not be the image's. Void stays void in the prediction.
    """
    size = WIDTH, min(MAX_HEIGHT, max(1, round(image.height * WIDTH / image.width)))
    small = image.resize(size, Image.Resampling.BICUBIC)
    return [small, _overlay(small, truth), _overlay(small, np.where(truth == IGNORE, IGNORE, prediction))]


def save_rows(rows: Sequence[Sequence[Image.Image]], out: Path | None) -> list[str]:
    """Write rows of `overlay_row` as one picture below a folder, and return its path there, if there is any row."""
    if out is None or not rows:
        return []
    heights = [row[0].height for row in rows]
    sheet = Image.new("RGB", (3 * WIDTH + 2 * GAP, sum(heights) + GAP * (len(heights) - 1)), (255, 255, 255))
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, panel in enumerate(row):
            sheet.paste(panel, (column * (WIDTH + GAP), top))
        top += height + GAP
    with clear_error(out / FILE):
        (out / FILE).parent.mkdir(parents=True, exist_ok=True)
        sheet.save(out / FILE)
    return [FILE]


def _overlay(image: Image.Image, classes: np.ndarray) -> Image.Image:
    # Above 255 classes the colours repeat; the number of void keeps its own.
    numbers = np.where(classes > IGNORE, classes % IGNORE, classes).astype(np.uint8)
    colours = PALETTE[np.asarray(Image.fromarray(numbers).resize(image.size, Image.Resampling.NEAREST))]
    return Image.fromarray((OPACITY * colours + (1 - OPACITY) * np.asarray(image)).round().astype(np.uint8))
