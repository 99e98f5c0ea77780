"""Augmentation of training images: crop, size and flip are drawn, then pixels, boxes and masks rendered from them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfpatch.evaluation.detection.config import DetectionConfig
from selfpatch.evaluation.detection.dataset import AnnotatedImage, Box, Instance
from selfpatch.evaluation.detection.masks import Polygons, Rle, extent, packed, to_pixels

CROP_SHORT_SIDES = (400, 500, 600)
CROP_SIDES = (384, 600)
CROP_REFERENCE = 800
"""Short side in pixels that the published numbers of the crop are for; they are scaled with the short side."""
JITTER = (0.1, 2.0)
CUT_TOLERANCE = 1e-3
"""Pixels by which a box may leave the image and still count as whole."""


class Target(TypedDict):
    """Objects of one image, as torchvision's modules take them."""

    boxes: Tensor
    """Boxes, float32 [n, 4] (left, top, right, bottom)."""
    labels: Tensor
    """Class labels, int64 [n], counted from 1."""
    masks: Tensor
    """Masks, uint8 [n, H, W]."""


@dataclass(frozen=True)
class Placement:
    """Rectangle of an image that is resized to `width` x `height` pixels and perhaps flipped horizontally."""

    region: Box
    """(left, top, right, bottom) in pixels of the whole image, fractions allowed."""
    width: int
    height: int
    flip: bool = False

    def points(self, points: np.ndarray) -> np.ndarray:
        """Return the coordinates in the result of points [n, 2] (x, y) of the whole image."""
        left, top, right, bottom = self.region
        scale = np.array([self.width / (right - left), self.height / (bottom - top)])
        placed = (points - np.array([left, top])) * scale
        if self.flip:
            placed[:, 0] = self.width - placed[:, 0]
        return placed

    def box(self, box: Box) -> Box:
        """Return the coordinates in the result of a box of the whole image."""
        corners = self.points(np.array(box, np.float64).reshape(2, 2))
        (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
        return float(left), float(top), float(right), float(bottom)

    def image(self, image: Image.Image, resample: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
        """Return the cropped and resized image; doing both in one step keeps it sharp."""
        placed = image.resize((self.width, self.height), resample, box=self.region)
        return placed.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else placed


def fit_size(width: float, height: float, short_side: int, long_side: int) -> tuple[int, int]:
    """Return the size with the given short side, or with the long side `long_side` if that would be exceeded."""
    scale = min(short_side / min(width, height), long_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def whole(width: int, height: int, short_side: int, long_side: int, flip: bool = False) -> Placement:
    """Return the placement of the whole image."""
    return Placement((0.0, 0.0, float(width), float(height)), *fit_size(width, height, short_side, long_side), flip)


def draw(width: int, height: int, config: DetectionConfig, rng: np.random.Generator) -> Placement:
    """Draw the augmentation of an image of this size, which is flipped with probability 1/2.

    - multi-scale (DETR, arXiv 2005.12872; Swin, arXiv 2103.14030): with probability 1/2 the whole image, its short side
      one of `short_sides`; else the image is resized to a short side of 400, 500 or 600, cropped to sides of 384 to
      600, and resized to one of `short_sides`. 400 to 600 are for short sides up to 800, and scaled for others.
    - large-scale-jitter (arXiv 2012.07177; ViTDet): the image is resized to a long side of 0.1 to 2.0 times
      `long_side`, and cropped to at most a square of `long_side`.
    - resize: the whole image, its short side one of `short_sides` (Detectron2).
    - none: the whole image, its short side the largest of `short_sides`; it may be flipped too.
    """
    flip = bool(rng.random() < 0.5)
    short_sides, long_side = config.short_sides, config.long_side
    if config.augmentation == "large-scale-jitter":
        return _draw_jitter(width, height, long_side, flip, rng)
    if config.augmentation == "none":
        return whole(width, height, max(short_sides), long_side, flip)
    region: Box = (0.0, 0.0, float(width), float(height))
    if config.augmentation == "multi-scale" and rng.random() < 0.5:
        region = _draw_crop(width, height, max(short_sides) / CROP_REFERENCE, long_side, rng)
    size = fit_size(region[2] - region[0], region[3] - region[1], int(rng.choice(short_sides)), long_side)
    return Placement(region, *size, flip)


def _draw_crop(width: int, height: int, scale: float, long_side: int, rng: np.random.Generator) -> Box:
    short_side = round(int(rng.choice(CROP_SHORT_SIDES)) * scale)
    resized = fit_size(width, height, max(1, short_side), long_side)
    low, high = (round(side * scale) for side in CROP_SIDES)
    sides = [int(rng.integers(min(side, low), min(side, high) + 1)) for side in resized]
    starts = [int(rng.integers(0, whole - side + 1)) for whole, side in zip(resized, sides, strict=True)]
    return _region((width, height), resized, starts, sides)


def _draw_jitter(width: int, height: int, long_side: int, flip: bool, rng: np.random.Generator) -> Placement:
    scale = rng.uniform(*JITTER) * long_side / max(width, height)
    resized = [max(1, round(side * scale)) for side in (width, height)]
    sides = min(resized[0], long_side), min(resized[1], long_side)
    offset = rng.random()  # one draw for both axes, as in Detectron2's FixedSizeCrop
    starts = [round((whole - side) * offset) for whole, side in zip(resized, sides, strict=True)]
    return Placement(_region((width, height), resized, starts, sides), *sides, flip)


def _region(size: Sequence[int], resized: Sequence[int], starts: Sequence[int], sides: Sequence[int]) -> Box:
    """Return, in pixels of an image (width, height), the part of the resized image at `starts` with these sides."""
    x, y = size[0] / resized[0], size[1] / resized[1]
    return starts[0] * x, starts[1] * y, (starts[0] + sides[0]) * x, (starts[1] + sides[1]) * y


def render(image: Image.Image, annotated: AnnotatedImage, placement: Placement) -> tuple[Tensor, Target]:
    """Return the image of a placement, uint8 [3, H, W], and the objects that are visible in it.

    Masks are drawn from the placed polygons, never resampled. An object without a visible pixel is dropped. The box of
    a whole object keeps the annotated fractions of a pixel. The box of a cut object is that of its visible mask, so
    that boxes and masks always agree (the published pipelines clip the box).
    """
    pixels = torch.from_numpy(np.array(placement.image(image))).permute(2, 0, 1).contiguous()
    return pixels, place_objects(annotated.objects(), annotated.width, annotated.height, placement)


def place_objects(objects: Iterable[Instance], width: int, height: int, placement: Placement) -> Target:
    """Return the objects of an image of this size that are visible in a placement.

    An object that has a box only gets an empty mask, and is dropped if less than a pixel of the box is visible.
    """
    boxes, labels, masks = list[Box](), list[int](), list[np.ndarray]()
    for one in objects:
        box = placement.box(one.box)
        left, top = max(box[0], 0.0), max(box[1], 0.0)
        right, bottom = min(box[2], placement.width), min(box[3], placement.height)
        if min(right - left, bottom - top) <= 0:
            continue
        mask = _place_mask(one.segmentation, width, height, placement)
        visible: Box | None = (left, top, right, bottom) if min(right - left, bottom - top) >= 1 else None
        if one.segmentation:
            visible = extent(mask)
        if visible is not None:
            outside = max(-box[0], -box[1], box[2] - placement.width, box[3] - placement.height)
            boxes.append(box if outside <= CUT_TOLERANCE else visible)
            labels.append(one.label)
            masks.append(mask)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": torch.from_numpy(np.array(masks, np.uint8).reshape(-1, placement.height, placement.width)),
    }


def _place_mask(segmentation: Polygons | Rle, width: int, height: int, placement: Placement) -> np.ndarray:
    """Return the placed mask, uint8 [H, W]; run lengths have no polygon, so their pixels are resized to the nearest."""
    if isinstance(segmentation, dict):
        (mask,) = to_pixels([packed(segmentation, height, width)], height, width)
        return np.array(placement.image(Image.fromarray(mask), Image.Resampling.NEAREST))
    size = placement.height, placement.width
    if not segmentation:
        return np.zeros(size, np.uint8)
    return to_pixels([packed(tuple(placement.points(polygon) for polygon in segmentation), *size)], *size)[0]
