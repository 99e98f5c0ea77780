"""Whole images as one batch for meters and pictures: resized and centre-cropped, without augmentation."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as tvf

from selfpatch.config.schema import Size, height_and_width, size_text
from selfpatch.data.augment.pillow import resize_picture, to_tensor
from selfpatch.data.decode.pillow import BadImage, Picture, as_bad_image, read_picture
from selfpatch.data.sources.index import ImageIndex
from selfpatch.ops.images import to_common_dtype

T = TypeVar("T")
OnBad = Callable[[BadImage], None]
"""Function that is told of each unreadable image that is left out."""


class NoneReadable(ValueError):
    """None of several images, or videos, can be read; `example` is the error of one of them."""

    def __init__(self, count: int, example: object = None, noun: str = "image") -> None:
        reason = f", e.g. {example}" if example is not None else ""
        super().__init__(f"no {noun} can be read ({count} tried){reason}; give {noun}s that can be read")
        self.example = example


class LoadedImages(NamedTuple):
    """Images of a batch, and which they are."""

    images: Tensor  # [n, C, size, size] uint8, or float32 if an image is deeper than 8 bits
    indices: np.ndarray  # [n] int64, those that could be read, in the given order


def evenly_spread(indices: np.ndarray, count: int) -> np.ndarray:
    """Return `count` evenly spread elements, including the first and the last; all of them if there are no more."""
    return indices[np.linspace(0, len(indices) - 1, min(count, len(indices))).round().astype(int)]


def limited(items: Sequence[T], count: int | None) -> Sequence[T]:
    """Return at most `count` evenly spread items; all of them if it is None."""
    return items if count is None else [items[i] for i in evenly_spread(np.arange(len(items)), count)]


def read_each(
    index: ImageIndex,
    indices: Sequence[int] | np.ndarray,
    channels: int,
    convert: Callable[[Picture, int], T],
    on_bad: OnBad | None = None,
) -> tuple[list[int], list[T]]:
    """Return the indices of the readable images in the given order, and what `convert` made of each image.

    `convert` takes an image and its position in `indices`. Threads read images and convert them; at most as many images
    as threads are held at once. `on_bad` is called for the unreadable ones, in order. NoneReadable is raised if there
    are no others.
    """

    def read(position: int, i: int) -> tuple[int, T] | BadImage:
        file = index.file(i)
        try:
            with as_bad_image(file):
                return i, convert(read_picture(file, channels), position)
        except BadImage as error:
            return error

    # Pillow and torch release the interpreter's lock while they decode and compute.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        outcomes = list(pool.map(read, range(len(indices)), map(int, indices)))
    converted = [outcome for outcome in outcomes if not isinstance(outcome, BadImage)]
    for outcome in outcomes:
        if on_bad is not None and isinstance(outcome, BadImage):
            on_bad(outcome)
    if not converted:
        raise NoneReadable(len(outcomes), next(iter(outcomes), None))
    return [i for i, _ in converted], [value for _, value in converted]


def load_images(
    index: ImageIndex,
    indices: Sequence[int] | np.ndarray,
    size: Size,
    *,
    resize: int | None = None,
    channels: int = 3,
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
    on_bad: OnBad | None = None,
) -> LoadedImages:
    """Load centre crops of `size` pixels; unreadable images are left out, and `on_bad` is told of each.

    The image is made as small as `resize` x `resize` pixels, or the crop (default), allow (antialiased), then the
    middle is cut out. DINO's k-NN protocol has size 224, resize 256. NoneReadable is raised if none can be read.
    """
    sides = height_and_width(size)
    covered = sides if resize is None else (resize, resize)
    if resize is not None and resize < max(sides):
        raise ValueError(
            f"crops of {size_text(size)} pixels cannot be cut out of images resized to {resize}; let resize be "
            f"{max(sides)} or more"
        )

    def cropped(picture: Picture, _: int) -> Tensor:
        return centre_crop(picture, sides, covered, resampling=resampling)

    readable, crops = read_each(index, indices, channels, cropped, on_bad)
    return LoadedImages(torch.stack(to_common_dtype(crops)), np.array(readable, np.int64))


def centre_crop(
    picture: Picture,
    sides: tuple[int, int],
    covered: tuple[int, int] | None = None,
    *,
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
) -> Tensor:
    """Return the middle [C, h, w] of a picture made as small as it can be to cover a size.

    Args:
        picture: the picture.
        sides: height h and width w of the result in pixels.
        covered: height and width that the whole resized picture covers; defaults to `sides`.
        resampling: interpolation of the resize, which is antialiased.
    """
    target = (covered or sides)[::-1]
    least, side = max(zip(target, picture.size, strict=True), key=lambda pair: pair[0] / pair[1])
    width, height = (int(least * other / side) for other in picture.size)
    return tvf.center_crop(to_tensor(resize_picture(picture, width, height, resampling=resampling)), [*sides])
