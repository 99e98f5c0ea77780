"""Pictures of what was found: boxes, masks and classes over the image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageDraw

from selfpatch.evaluation.detection.dataset import Split
from selfpatch.evaluation.detection.masks import to_pixels
from selfpatch.evaluation.detection.predictions import Row, rows_by_image

LEAST_SCORE = 0.5
COLOURS = ((230, 60, 60), (60, 140, 240), (60, 190, 90), (240, 170, 40), (170, 90, 220), (40, 190, 200))
"""By label, over and over."""


def save_pictures(out: Path, split: Split, boxes: Sequence[Row], masks: Sequence[Row], count: int) -> list[str]:
    """Draws so many images of a split, evenly spread, with what is found in them at a score of at least 1/2.

    Args:
        out: folder; the pictures lie in its folder pictures.
        boxes, masks: rows as `detect_all` gives them.

    Returns:
        Their paths, relative to `out`.
    """
    chosen = np.linspace(0, len(split.images) - 1, min(count, len(split.images))).round().astype(int)
    found, outlined = rows_by_image(boxes), rows_by_image(masks)
    written = []
    for image in (split.images[number] for number in chosen):
        picture = draw_found(image.read(), split, found.get(image.id, []), outlined.get(image.id, []))
        relative = f"pictures/{PurePosixPath(image.name).with_suffix('').as_posix().replace('/', '_')}.jpg"
        (out / "pictures").mkdir(parents=True, exist_ok=True)
        picture.save(out / relative, quality=90)
        written.append(relative)
    return written


def draw_found(image: Image.Image, split: Split, boxes: Sequence[Row], masks: Sequence[Row]) -> Image.Image:
    """One image with what is found in it, rows of boxes and of masks in the same order."""
    labels = {category: label for label, category in enumerate(split.category_ids)}
    sure = [(box, mask) for box, mask in zip(boxes, masks, strict=True) if box["score"] >= LEAST_SCORE]
    shades = [COLOURS[labels[box["category_id"]] % len(COLOURS)] for box, _ in sure]
    pixels = np.array(image, np.float32)
    inside = to_pixels([mask["segmentation"] for _, mask in sure], image.height, image.width).astype(bool)
    for mask, shade in zip(inside, shades, strict=True):
        pixels[mask] = 0.5 * pixels[mask] + 0.5 * np.array(shade, np.float32)
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for (box, _), shade in zip(sure, shades, strict=True):
        left, top, width, height = box["bbox"]
        pen.rectangle((left, top, left + width, top + height), outline=shade, width=2)
        name = split.category_names[labels[box["category_id"]]]
        pen.text(
            (left + 3, top + 2), f"{name} {box['score']:.2f}", fill=(255, 255, 255), stroke_width=1, stroke_fill=shade
        )
    return picture
