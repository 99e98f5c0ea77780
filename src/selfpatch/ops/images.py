"""Images as tensors on a device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(image - mean) / std, channel by channel, of images in [0, 1]; those of 8 bits are divided by 255 first.

    Args:
        images: [..., C, H, W] uint8 in [0, 255], or float32 in [0, 1].
        mean, std: C numbers each.

    Returns:
        [..., C, H, W] float32.

    Raises:
        ValueError: the images are neither uint8 nor float32, or have another number of channels than mean and std.
    """
    known = images.dtype in (torch.uint8, torch.float32)
    if not known or images.ndim < 3 or not images.shape[-3] == len(mean) == len(std):
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}; "
            f"uint8 or float32 [..., {len(mean)}, H, W] is needed for {len(mean)} means"
        )
    return (in_unit_range(images) - _constant(tuple(mean), images.device)) / _constant(tuple(std), images.device)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """[C, 1, 1]; once a device, for to bring it there at each step would make the host wait."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def in_unit_range(images: Tensor) -> Tensor:
    """uint8 -> float32 in [0, 1]; floats are taken to lie there already."""
    return images / 255 if images.dtype == torch.uint8 else images


def one_depth(images: Sequence[Tensor]) -> list[Tensor]:
    """Images that can be stacked: as they are, or all float32 in [0, 1] where some are uint8 and some float32."""
    mixed = len({image.dtype for image in images}) > 1
    return [in_unit_range(image) if mixed else image for image in images]


def sent(values: Tensor, device: torch.device) -> Tensor:
    """A small tensor of the CPU on a device. CUDA takes its own copy before this returns, so that nothing waits and the
    memory may go at once; of other devices that is not said."""
    return values.to(device, non_blocking=device.type == "cuda")
