"""Normalised batches of images of any kind, as an encoder takes them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as pixels

from selfpatch.core.orientation import turn_upright
from selfpatch.core.text import counted
from selfpatch.ops.images import normalise, to_unit_range

KINDS = "a PIL image, an array [H, W, C], a tensor [C, H, W], a batch [B, C, H, W], or a list of images"


class ImageTransform:
    """Resizing and normalisation of an encoder: `encoder.patches(encoder.transform(images, size=224))`.

    Args:
        mean: channel means of images in [0, 1].
        std: channel standard deviations of images in [0, 1].
        patch_size: side of a patch in pixels.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], patch_size: int) -> None:
        self.mean, self.std, self.patch_size = tuple(mean), tuple(std), patch_size

    def __call__(self, images: Any, size: int | tuple[int, int] | None = None) -> Tensor:
        """Return images as a normalised batch, float32 [B, C, H, W].

        ::

            for each image:
                turn it upright, if it is a PIL image with an EXIF orientation
                size is a number: resize the shorter side to it (bicubic, antialiased), and keep the central square
                size is (height, width): resize to it
                size is None: keep the pixels, without borders that are no whole patch
                scale to [0, 1], subtract the mean, divide by the std

        Args:
            images: a PIL image, an array [H, W] or [H, W, C], a tensor [C, H, W], a batch [B, C, H, W], or a list of
                images. Values are uint8, or floats in [0, 1]; one channel serves an encoder of three.
            size: side, or height and width, in pixels, rounded down to multiples of the patch size.

        Raises:
            ValueError: images are of another kind, values are outside of [0, 1], the number of channels is not the
                encoder's, or sizes differ and `size` is None.
        """
        if isinstance(size, np.integer):
            size = int(size)
        several = isinstance(images, list | tuple) or (isinstance(images, Tensor | np.ndarray) and images.ndim == 4)
        batch = [self._fitted(self._tensor(image), size) for image in (images if several else [images])]
        if not batch:
            raise ValueError(f"there are no images; give {KINDS}")
        sides = dict.fromkeys(f"{image.shape[-1]} x {image.shape[-2]}" for image in batch)
        if len(sides) > 1:
            raise ValueError(f"images are of {' and '.join(list(sides)[:2])} pixels; give a size, e.g. size=224")
        return normalise(torch.stack(batch), self.mean, self.std)

    def _tensor(self, image: Any) -> Tensor:
        """Return an image as floats in [0, 1], [C, H, W]."""
        channels = len(self.mean)
        if isinstance(image, Image.Image):
            image = image.copy()
            turn_upright(image)
            is_wide = image.mode.startswith(("I", "F"))  # `convert` would clip 16 bits and floats to 8 bits
            image = np.array(image.convert("RGB") if channels == 3 and not is_wide else image)
        if isinstance(image, np.ndarray) and image.ndim in (2, 3):
            image = pixels.to_image(np.array(image)).as_subclass(Tensor)  # a copy, as arrays of files are read-only
        if not isinstance(image, Tensor) or image.ndim != 3 or not image.numel():
            shape = f" {list(image.shape)}" if hasattr(image, "shape") else ""
            raise ValueError(f"an image is a {type(image).__name__}{shape}; give {KINDS}")
        if len(image) == 1:
            image = image.expand(channels, -1, -1)
        if len(image) != channels:
            raise ValueError(f"an image has {counted(len(image), 'channel')}; the encoder takes {channels}")
        if image.dtype != torch.uint8:
            low, high = (value.item() for value in image.float().aminmax())  # uint16 has none
            if not image.is_floating_point() or not 0 <= low <= high <= 1:
                raise ValueError(
                    f"an image has values of type {image.dtype} from {low:g} to {high:g}; use uint8, or floats in "
                    "[0, 1] before normalisation"
                )
        return to_unit_range(image).float()

    def _fitted(self, image: Tensor, size: int | tuple[int, int] | None) -> Tensor:
        """Return an image whose sides are multiples of the patch size."""
        if size is not None and not isinstance(size, int) and not (isinstance(size, tuple | list) and len(size) == 2):
            raise ValueError(f"size is {size}; use a number of pixels, or height and width")
        height, width = (size, size) if isinstance(size, int) else size or image.shape[-2:]
        target = [side // self.patch_size * self.patch_size for side in (height, width)]
        if min(target) < 1:
            raise ValueError(
                f"an image would be {width} x {height} pixels, and a patch has {self.patch_size}; use a larger size"
            )
        if size is not None:
            resized = target[:1] if isinstance(size, int) else target
            image = pixels.resize(image, resized, InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
        return pixels.center_crop(image, target)
