"""Whole images as one batch, for meters and pictures: resized and centre-cropped, no augmentation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import functional as tvf

from selfpatch.data.augment.pillow import resize_picture, to_tensor
from selfpatch.data.decode.pillow import BadImage, read_picture
from selfpatch.data.sources.index import ImageIndex
from selfpatch.ops.images import one_depth


class NoneReadable(ValueError):
    """None of so many images can be read; `example` says why not, of one."""

    def __init__(self, count: int, example: object = None) -> None:
        reason = f", e.g. {example}" if example is not None else ""
        super().__init__(f"none of {count} images can be read{reason}; give images that can be read")
        self.example = example


class LoadedImages(NamedTuple):
    images: Tensor  # [n, C, size, size] uint8, or float32 where an image is deeper than 8 bits
    places: np.ndarray  # [n] int64, the places that could be read, in the order asked for


def evenly_spread(places: np.ndarray, count: int) -> np.ndarray:
    """So many of the places, the first and the last among them; all of them where there are no more."""
    return places[np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(int)]


def load_images(
    index: ImageIndex,
    places: Sequence[int] | np.ndarray,
    size: int,
    *,
    resize: int | None = None,
    channels: int = 3,
) -> LoadedImages:
    """Centre crops: the shorter side is resized to `resize` (bicubic, antialiased), then the middle is cut out.

    Args:
        index: the images.
        places: those to load; unreadable ones are left out.
        size: side of the crops in pixels.
        resize: shorter side before cropping; None: `size`. DINO's k-NN protocol is size 224, resize 256.
        channels: of the images, as `read_picture` takes them.

    Raises:
        NoneReadable: none of the images can be read.
        ValueError: `resize` is smaller than `size`.
    """
    shorter = size if resize is None else resize
    if shorter < size:
        raise ValueError(
            f"crops of {size} pixels cannot be cut out of images resized to {shorter}; let resize be {size} or more"
        )

    def load(place: int) -> Tensor | BadImage:
        try:
            picture = read_picture(index.file(place), channels)
        except BadImage as error:
            return error
        width, height = (int(shorter * side / min(picture.size)) for side in picture.size)
        return tvf.center_crop(to_tensor(resize_picture(picture, width, height)), [size, size])

    numbers = [int(place) for place in places]
    with ThreadPoolExecutor(
        min(8, os.cpu_count() or 1)
    ) as pool:  # Pillow decodes and resizes outside the interpreter's lock
        loaded = list(pool.map(load, numbers))
    images = [(place, image) for place, image in zip(numbers, loaded, strict=True) if isinstance(image, Tensor)]
    if not images:
        raise NoneReadable(len(numbers), next(iter(loaded), None))
    pixels = torch.stack(one_depth([image for _, image in images]))
    return LoadedImages(pixels, np.array([place for place, _ in images], np.int64))
