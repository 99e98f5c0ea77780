"""Images as tensors: normalisation and value range."""

from collections.abc import Sequence

import torch
from torch import Tensor

from selfpatch.core.constants import cached_constant

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Compute (image - mean) / std for each channel of images in [0, 1]; uint8 images are divided by 255 first.

    Images are [..., C, H, W] in uint8 or float32, the result is float32; mean and std have C numbers.

    Raises:
        ValueError: the images are neither uint8 nor float32, or have another number of channels than mean and std.
    """
    known = images.dtype in (torch.uint8, torch.float32)
    if not known or images.ndim < 3 or not images.shape[-3] == len(mean) == len(std):
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}; "
            f"uint8 or float32 [..., {len(mean)}, H, W] is needed for {len(mean)} means"
        )
    return (to_unit_range(images) - _constant(tuple(mean), images.device)) / _constant(tuple(std), images.device)


@cached_constant
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return values as [C, 1, 1], cached for each device: a copy at each step would make the host wait."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def to_unit_range(images: Tensor) -> Tensor:
    """Scale uint8 images to float32 in [0, 1]; floating-point images are returned as they are."""
    return images / 255 if images.dtype == torch.uint8 else images


def to_common_dtype(images: Sequence[Tensor]) -> list[Tensor]:
    """Return images that can be stacked: if types are mixed, all become float32 in [0, 1]."""
    mixed = len({image.dtype for image in images}) > 1
    return [to_unit_range(image) if mixed else image for image in images]
