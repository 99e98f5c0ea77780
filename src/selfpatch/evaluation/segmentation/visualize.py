"""Pictures of segmentations: image, labels and prediction side by side, one row for each image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from selfpatch.data.images import evenly_spread
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


class OverlaySheet:
    """Evenly spread images of a set, collected while it is worked through.

    Args:
        num_images: number of images of the set.
        rows: number of images to show.
    """

    def __init__(self, num_images: int, rows: int) -> None:
        self._chosen = set(evenly_spread(np.arange(num_images), rows).tolist())
        self._rows: list[list[Image.Image]] = []

    def wants(self, i: int) -> bool:
        """Return whether the image of this index is to be added."""
        return i in self._chosen

    def add(self, image: Image.Image, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Add one row. Void stays void in the prediction.

        Args:
            image: RGB image.
            truth: [h, w] class numbers, of any size.
            prediction: [h, w] class numbers, as large as `truth`.
        """
        size = WIDTH, min(MAX_HEIGHT, max(1, round(image.height * WIDTH / image.width)))
        small = image.resize(size, Image.Resampling.BICUBIC)
        shown = np.where(truth == IGNORE, IGNORE, prediction)
        self._rows.append([small, _overlay(small, truth), _overlay(small, shown)])

    def save(self, out: str | Path | None) -> list[str]:
        """Write the sheet below a folder, and return its path there; nothing if there is no picture."""
        if out is None or not self._rows:
            return []
        heights = [row[0].height for row in self._rows]
        sheet = Image.new("RGB", (3 * WIDTH + 2 * GAP, sum(heights) + GAP * (len(heights) - 1)), (255, 255, 255))
        top = 0
        for row, height in zip(self._rows, heights, strict=True):
            for column, panel in enumerate(row):
                sheet.paste(panel, (column * (WIDTH + GAP), top))
            top += height + GAP
        path = Path(out) / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(path)
        return [FILE]


def _overlay(image: Image.Image, classes: np.ndarray) -> Image.Image:
    # Above 255 classes the colours repeat; the number of void keeps its own.
    numbers = np.where(classes > IGNORE, classes % IGNORE, classes).astype(np.uint8)
    colours = PALETTE[np.asarray(Image.fromarray(numbers).resize(image.size, Image.Resampling.NEAREST))]
    return Image.fromarray((OPACITY * colours + (1 - OPACITY) * np.asarray(image)).round().astype(np.uint8))
