"""Masks over their frames, as one strip of a few frames of a clip."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

from selfpatch.data.images import evenly_spread
from selfpatch.evaluation.pictures import scaled_to_height, side_by_side

HEIGHT = 240
"""Height of the frames on the strip, in pixels."""
NUM_FRAMES = 5
OPACITY = 0.45
COLOURS = np.array([
    (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 90, 255), (245, 130, 48), (70, 240, 240), (240, 50, 230),
    (190, 255, 50), (145, 30, 180),
], np.uint8)  # fmt: skip
"""Colours of objects, bright and told apart easily; grey and white are those of many things."""


class Frame(NamedTuple):
    """A frame of a strip."""

    caption: str
    image: Image.Image
    mask: np.ndarray
    """Object numbers [H, W] uint8, 0 for the background, of the image's size."""


def shown_frames(num_frames: int) -> set[int]:
    """Return the indices of the frames of a clip that its strip shows, evenly spread."""
    return set(evenly_spread(np.arange(num_frames), NUM_FRAMES).tolist())


def strip(frames: Sequence[Frame]) -> Image.Image:
    """Return frames side by side, each object filled with a colour unlike its pixels, and with a contour."""
    images = [scaled_to_height(frame.image, HEIGHT) for frame in frames]
    masks = [
        np.asarray(Image.fromarray(frame.mask).resize(image.size, Image.Resampling.NEAREST))
        for frame, image in zip(frames, images, strict=True)
    ]
    colours = object_colours([np.asarray(image) for image in images], masks)
    drawn = [overlay(image, mask, colours) for image, mask in zip(images, masks, strict=True)]
    return side_by_side(drawn, [frame.caption for frame in frames])


def object_colours(images: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> np.ndarray:
    """Return RGB colours [256, 3] by object number: of those still free, the one farthest from the object's pixels.

    Images are [H, W, 3] and masks [H, W], both uint8. Colours repeat beyond nine objects.
    """
    table, free = np.zeros((256, 3), np.uint8), list(range(len(COLOURS)))
    for number in sorted({*np.concatenate([np.unique(mask) for mask in masks]).tolist()} - {0}):
        pixels = np.concatenate([image[mask == number] for image, mask in zip(images, masks, strict=True)])
        free = free or list(range(len(COLOURS)))
        distances = np.linalg.norm(COLOURS[free].astype(np.float32) - pixels.mean(0), axis=1)
        table[number] = COLOURS[free.pop(int(distances.argmax()))]
    return table


def overlay(image: Image.Image, mask: np.ndarray, colours: np.ndarray) -> Image.Image:
    """Tint the objects with their colours inside contours of it, which a dark line sets off; the rest stays."""
    pixels, inside = np.asarray(image, np.float32), (mask > 0)[..., None]
    drawn = np.where(inside, (1 - OPACITY) * pixels + OPACITY * colours[mask], pixels)
    square = np.ones((3, 3), bool)
    smallest, largest = (found(mask, footprint=square) for found in (ndimage.minimum_filter, ndimage.maximum_filter))
    edge = smallest != largest
    drawn[ndimage.binary_dilation(edge, square)] = 0
    contour = edge & (mask > 0)
    drawn[contour] = colours[mask[contour]]
    return Image.fromarray(drawn.round().astype(np.uint8))
