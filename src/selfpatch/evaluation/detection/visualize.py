"""Pictures of detections: boxes, masks and classes over the image."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from selfpatch.data.images import evenly_spread
from selfpatch.evaluation.detection.dataset import Split
from selfpatch.evaluation.detection.masks import to_pixels
from selfpatch.evaluation.detection.predictions import Row, rows_by_image
from selfpatch.evaluation.pictures import save_picture
from selfpatch.visualization.layout import SERIES

MIN_SCORE = 0.5


def save_pictures(out: Path, split: Split, boxes: Sequence[Row], masks: Sequence[Row], num_pictures: int) -> list[str]:
    """Draw evenly spread images of a split with their detections of a score of at least 1/2 into out/pictures/.

    Boxes and masks are rows, as `detect_all` returns them. The returned paths are relative to `out`.
    """
    image_boxes, image_masks = rows_by_image(boxes), rows_by_image(masks)
    written = []
    for index in evenly_spread(np.arange(len(split.images)), num_pictures):
        image = split.images[index]
        rows = image_boxes.get(image.id, []), image_masks.get(image.id, [])
        name = PurePosixPath(image.name).with_suffix("").as_posix().replace("/", "_")
        written.append(save_picture(out, name, draw_detections(image.read(), split, *rows)))
    return written


def draw_detections(image: Image.Image, split: Split, boxes: Sequence[Row], masks: Sequence[Row]) -> Image.Image:
    """Draw the detections of one image; rows of boxes and of masks are in the same order."""
    labels = {category: label for label, category in enumerate(split.category_ids)}
    confident = [(box, mask) for box, mask in zip(boxes, masks, strict=True) if box["score"] >= MIN_SCORE]
    colours = [SERIES[labels[box["category_id"]] % len(SERIES)] for box, _ in confident]
    pixels = np.array(image, np.float32)
    inside = to_pixels([mask["segmentation"] for _, mask in confident], image.height, image.width).astype(bool)
    for mask, colour in zip(inside, colours, strict=True):
        pixels[mask] = 0.5 * pixels[mask] + 0.5 * np.array(ImageColor.getrgb(colour), np.float32)
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for (box, _), colour in zip(confident, colours, strict=True):
        left, top, width, height = box["bbox"]
        draw.rectangle((left, top, left + width, top + height), outline=colour, width=2)
        text = f"{split.category_names[labels[box['category_id']]]} {box['score']:.2f}"
        draw.text((left + 4, top + 3), text, (255, 255, 255), font_size=14, stroke_width=2, stroke_fill=colour)
    return picture
