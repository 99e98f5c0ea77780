"""Draw, then render: where a training image is cut, how large it becomes, whether it is mirrored; then its pixels,
boxes and masks by the same numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfpatch.evaluation.detection.dataset import AnnotatedImage, Box, Instance
from selfpatch.evaluation.detection.masks import Polygons, Rle, extent, packed, to_pixels

Augmentation = Literal["multi-scale", "large-scale-jitter", "none"]
CROP_SHORT_SIDES = (400, 500, 600)
CROP_SIDES = (384, 600)
CROP_REFERENCE = 800
"""The published numbers of the crop are for images of this short side, and go along with it."""
JITTER = (0.1, 2.0)
CUT_TOLERANCE = 1e-3


class Target(TypedDict):
    """The objects of one image, as torchvision's parts take them."""

    boxes: Tensor
    """[n, 4] float32 (left, top, right, bottom)."""
    labels: Tensor
    """[n] int64, from 1."""
    masks: Tensor
    """[n, H, W] uint8."""


@dataclass(frozen=True)
class Placement:
    """A rectangle of an image, resized and perhaps mirrored.

    Attributes:
        region: (left, top, right, bottom) in pixels of the whole image, fractions allowed.
        width, height: of what it becomes.
        flip: mirrored afterwards.
    """

    region: Box
    width: int
    height: int
    flip: bool = False

    def points(self, points: np.ndarray) -> np.ndarray:
        """Places [n, 2] (x, y) of the whole image as places of the result."""
        left, top, right, bottom = self.region
        scale = np.array([self.width / (right - left), self.height / (bottom - top)])
        placed = (points - np.array([left, top])) * scale
        if self.flip:
            placed[:, 0] = self.width - placed[:, 0]
        return placed

    def box(self, box: Box) -> Box:
        corners = self.points(np.array(box, np.float64).reshape(2, 2))
        (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
        return float(left), float(top), float(right), float(bottom)

    def image(self, image: Image.Image, resample: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
        """Cut and resized in one go: an image that is resized, cut and resized again loses sharpness for nothing."""
        placed = image.resize((self.width, self.height), resample, box=self.region)
        return placed.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else placed


def fitted(width: float, height: float, short_side: int, long_side: int) -> tuple[int, int]:
    """(width, height) of the short side, or of the long one where that would become longer than `long_side`."""
    scale = min(short_side / min(width, height), long_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def whole(width: int, height: int, short_side: int, long_side: int) -> Placement:
    """The whole image, as it is evaluated."""
    return Placement((0.0, 0.0, float(width), float(height)), *fitted(width, height, short_side, long_side))


def draw(
    kind: Augmentation,
    width: int,
    height: int,
    short_sides: Sequence[int],
    long_side: int,
    rng: np.random.Generator,
) -> Placement:
    """One augmentation of an image of this size, mirrored every other time.

    - multi-scale (DETR, arXiv 2005.12872; Swin, arXiv 2103.14030): every other time the whole image, its short side one
      of `short_sides`; else resized to a short side of 400, 500 or 600, cut to sides of 384 to 600, and that resized to
      one of `short_sides`. 400 to 600 are for short sides up to 800, and proportional for others.
    - large-scale-jitter (arXiv 2012.07177; ViTDet): resized to a long side of 0.1 to 2.0 times `long_side`, and cut to
      at most a square of `long_side`.
    - none: the whole image, its short side the largest of `short_sides`; mirrored too.
    """
    flip = bool(rng.random() < 0.5)
    if kind == "large-scale-jitter":
        return _draw_jitter(width, height, long_side, flip, rng)
    region: Box = (0.0, 0.0, float(width), float(height))
    if kind == "none":
        return Placement(region, *fitted(width, height, max(short_sides), long_side), flip)
    if rng.random() < 0.5:
        region = _draw_crop(width, height, max(short_sides) / CROP_REFERENCE, long_side, rng)
    size = fitted(region[2] - region[0], region[3] - region[1], int(rng.choice(short_sides)), long_side)
    return Placement(region, *size, flip)


def _draw_crop(width: int, height: int, proportion: float, long_side: int, rng: np.random.Generator) -> Box:
    short_side = round(int(rng.choice(CROP_SHORT_SIDES)) * proportion)
    resized = fitted(width, height, max(1, short_side), long_side)
    low, high = (round(side * proportion) for side in CROP_SIDES)
    sides = [int(rng.integers(min(side, low), min(side, high) + 1)) for side in resized]
    starts = [int(rng.integers(0, whole - side + 1)) for whole, side in zip(resized, sides, strict=True)]
    x, y = width / resized[0], height / resized[1]
    return starts[0] * x, starts[1] * y, (starts[0] + sides[0]) * x, (starts[1] + sides[1]) * y


def _draw_jitter(width: int, height: int, long_side: int, flip: bool, rng: np.random.Generator) -> Placement:
    scale = rng.uniform(*JITTER) * long_side / max(width, height)
    resized = [max(1, round(side * scale)) for side in (width, height)]
    sides = min(resized[0], long_side), min(resized[1], long_side)
    where = rng.random()  # one draw for both axes, as in Detectron2's FixedSizeCrop
    starts = [round((whole - side) * where) for whole, side in zip(resized, sides, strict=True)]
    x, y = width / resized[0], height / resized[1]
    region = starts[0] * x, starts[1] * y, (starts[0] + sides[0]) * x, (starts[1] + sides[1]) * y
    return Placement(region, *sides, flip)


def render(image: Image.Image, annotated: AnnotatedImage, placement: Placement) -> tuple[Tensor, Target]:
    """The image [3, H, W] uint8 of a placement, and what is left of the objects in it.

    Masks are drawn from the placed outlines, never resampled. An object none of whose pixels is left is dropped. A box
    keeps the annotator's fractions of a pixel where the object is whole; where it is cut, the box is that of the mask
    that is left, so that boxes and masks always agree (the published pipelines clip the box).
    """
    pixels = torch.from_numpy(np.array(placement.image(image))).permute(2, 0, 1).contiguous()
    return pixels, place_objects(annotated.objects(), annotated.width, annotated.height, placement)


def place_objects(objects: Iterable[Instance], width: int, height: int, placement: Placement) -> Target:
    """The objects of an image of this size as a placement shows them; those with a box only have an empty mask, and
    are dropped where less than a pixel of the box is left."""
    seen = [o for o in objects if _overlaps(placement.box(o.box), placement)]
    masks = _masks([o.segmentation for o in seen], width, height, placement)
    kept, boxes = [], []
    for number, (one, mask) in enumerate(zip(seen, masks, strict=True)):
        box = placement.box(one.box)
        found = extent(mask) if one.segmentation else _clipped(box, placement)
        if found is not None:
            kept.append(number)
            boxes.append(box if _inside(box, placement) else found)
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor([seen[number].label for number in kept], dtype=torch.int64),
        "masks": torch.from_numpy(masks[kept]),
    }


def _overlaps(box: Box, placement: Placement) -> bool:
    return box[0] < placement.width and box[1] < placement.height and box[2] > 0 and box[3] > 0


def _clipped(box: Box, placement: Placement) -> Box | None:
    left, top, right, bottom = box
    left, top, right, bottom = max(left, 0.0), max(top, 0.0), min(right, placement.width), min(bottom, placement.height)
    return (left, top, right, bottom) if min(right - left, bottom - top) >= 1 else None


def _inside(box: Box, placement: Placement) -> bool:
    low, high = min(box[:2]), max(box[2] - placement.width, box[3] - placement.height)
    return low >= -CUT_TOLERANCE and high <= CUT_TOLERANCE


def _masks(segmentations: Sequence[Polygons | Rle], width: int, height: int, placement: Placement) -> np.ndarray:
    masks = np.zeros((len(segmentations), placement.height, placement.width), np.uint8)
    for mask, segmentation in zip(masks, segmentations, strict=True):
        if isinstance(segmentation, dict):
            mask[:] = _resampled(segmentation, width, height, placement)
        elif segmentation:
            outlines = tuple(placement.points(outline) for outline in segmentation)
            mask[:] = to_pixels([packed(outlines, *mask.shape)], *mask.shape)[0]
    return masks


def _resampled(rle: Rle, width: int, height: int, placement: Placement) -> np.ndarray:
    """Run lengths have no outline to place; their pixels are resized, to the nearest."""
    (mask,) = to_pixels([packed(rle, height, width)], height, width)
    return np.array(placement.image(Image.fromarray(mask), Image.Resampling.NEAREST))
