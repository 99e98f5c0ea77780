"""Pictures of detections: boxes, masks and classes over the image, beside the annotated ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from selfpatch.data.images import evenly_spread
from selfpatch.evaluation.detection.dataset import Instance, Split
from selfpatch.evaluation.detection.masks import Rle, packed, to_pixels
from selfpatch.evaluation.detection.predictions import Row, rows_by_image
from selfpatch.evaluation.pictures import numbered, save_picture, side_by_side
from selfpatch.visualization.layout import SERIES

MIN_SCORE = 0.5


class _Drawn(NamedTuple):
    """An object as it is drawn."""

    label: int
    corners: tuple[float, ...]
    mask: Rle | None
    text: str


def save_pictures(out: Path, split: Split, boxes: Sequence[Row], masks: Sequence[Row], num_pictures: int) -> list[str]:
    """Draw evenly spread images of a split into out/pictures/, annotated and with their detections side by side.

    Boxes and masks are rows, as `detect_all` returns them; those of a score of at least 1/2 are drawn. The returned
    paths are relative to `out`.
    """
    image_boxes, image_masks = rows_by_image(boxes), rows_by_image(masks)
    written = []
    for index in evenly_spread(np.arange(len(split.images)), num_pictures):
        image = split.images[index]
        pixels, rows = image.read(), (image_boxes.get(image.id, []), image_masks.get(image.id, []))
        panels = {
            "annotated": draw_truth(pixels, split, image.instances),
            f"detected with a score of {MIN_SCORE:g} or more": draw_detections(pixels, split, *rows),
        }
        sheet = side_by_side([*panels.values()], [*panels])
        written.append(save_picture(out, numbered(index, image.name), sheet))
    return written


def draw_truth(image: Image.Image, split: Split, instances: Sequence[Instance]) -> Image.Image:
    """Draw the annotated objects of one image; a crowd is named so."""
    return _draw(image, [
        _Drawn(
            one.label,
            one.box,
            packed(one.segmentation, image.height, image.width) if one.segmentation else None,
            split.category_names[one.label - 1] + " (crowd)" * one.crowd,
        )
        for one in instances
    ])  # fmt: skip


def draw_detections(image: Image.Image, split: Split, boxes: Sequence[Row], masks: Sequence[Row]) -> Image.Image:
    """Draw the detections of one image; rows of boxes and of masks are in the same order."""
    labels = {category: label for label, category in enumerate(split.category_ids, start=1)}
    drawn = []
    for box, mask in zip(boxes, masks, strict=True):
        if box["score"] >= MIN_SCORE:
            label, (left, top, width, height) = labels[box["category_id"]], box["bbox"]
            text = f"{split.category_names[label - 1]} {box['score']:.2f}"
            drawn.append(_Drawn(label, (left, top, left + width, top + height), mask["segmentation"], text))
    return _draw(image, drawn)


def _draw(image: Image.Image, objects: Sequence[_Drawn]) -> Image.Image:
    """Draw objects over an image, those of a category in one colour."""
    colours = [SERIES[(one.label - 1) % len(SERIES)] for one in objects]
    pixels = np.array(image, np.float32)
    for one, colour in zip(objects, colours, strict=True):
        if one.mask is not None:
            inside = to_pixels([one.mask], image.height, image.width)[0].astype(bool)
            pixels[inside] = 0.5 * pixels[inside] + 0.5 * np.array(ImageColor.getrgb(colour), np.float32)
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for one, colour in zip(objects, colours, strict=True):
        draw.rectangle(one.corners, outline=colour, width=2)
    for one, colour in zip(objects, colours, strict=True):  # above all boxes
        place = one.corners[0] + 4, one.corners[1] + 3
        draw.text(place, one.text, (255, 255, 255), font_size=14, stroke_width=2, stroke_fill=colour)
    return picture
