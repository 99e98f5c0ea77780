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
from torchvision.transforms.functional import InterpolationMode

from selfpatch.data.index import ImageIndex
from selfpatch.data.reading import BadImage, read_image


class LoadedImages(NamedTuple):
    images: Tensor  # [n, 3, size, size] uint8
    places: np.ndarray  # [n] int64, the places that could be read, in the order asked for


def load_images(
    index: ImageIndex, places: Sequence[int] | np.ndarray, size: int, *, resize: int | None = None
) -> LoadedImages:
    """Centre crops: the shorter side is resized to `resize` (bicubic, antialiased), then the middle is cut out.

    Args:
        index: the images.
        places: those to load; unreadable ones are left out.
        size: side of the crops in pixels.
        resize: shorter side before cropping; None: `size`. DINO's k-NN protocol is size 224, resize 256.

    Raises:
        ValueError: none of the images can be read, or `resize` is smaller than `size`.
    """
    shorter = size if resize is None else resize
    if shorter < size:
        raise ValueError(
            f"crops of {size} pixels cannot be cut out of images resized to {shorter}; let resize be {size} or more"
        )

    def load(place: int) -> Tensor | BadImage:
        try:
            image = read_image(index.path(place))
        except BadImage as error:
            return error
        image = tvf.resize(image, [shorter], InterpolationMode.BICUBIC)
        return tvf.pil_to_tensor(tvf.center_crop(image, [size, size]))

    numbers = [int(place) for place in places]
    with ThreadPoolExecutor(
        min(8, os.cpu_count() or 1)
    ) as pool:  # Pillow decodes and resizes outside the interpreter's lock
        loaded = list(pool.map(load, numbers))
    images = [(place, image) for place, image in zip(numbers, loaded, strict=True) if isinstance(image, Tensor)]
    if not images:
        example = f", e.g. {loaded[0]}" if loaded else ""
        raise ValueError(f"none of {len(numbers)} images can be read{example}; give images that can be read")
    return LoadedImages(torch.stack([image for _, image in images]), np.array([place for place, _ in images], np.int64))
