"""Features of plain uint8 images, in batches, without gradient, on whatever device the encoder is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from selfpatch.types import Encoder


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 [..., C, H, W] -> float32 (image / 255 - mean) / std.

    Raises:
        ValueError: the images are not uint8, or have another number of channels than mean and std.
    """
    if images.dtype != torch.uint8 or images.ndim < 3 or not images.shape[-3] == len(mean) == len(std):
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}; "
            f"uint8 [..., {len(mean)}, H, W] is needed for {len(mean)} means"
        )
    shift, scale = (torch.tensor(v, dtype=torch.float32, device=images.device).view(-1, 1, 1) for v in (mean, std))
    return (images / 255 - shift) / scale


def encoder_device(encoder: Encoder) -> torch.device:
    """Where the encoder's parameters are; the CPU for one that is no module or has none."""
    parameter = next(encoder.parameters(), None) if isinstance(encoder, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


@torch.no_grad()
def patch_features(encoder: Encoder, images: Tensor, *, std: Sequence[float] | None = None) -> Tensor:
    """The patch features of one batch.

    Args:
        encoder: the network.
        images: uint8 [B, 3, H, W]; H and W are multiples of the encoder's patch size.
        std: to normalise with; None: the encoder's own.

    Returns:
        [B, h, w, D] float32 on the encoder's device.

    Raises:
        ValueError: the patch size does not divide the sides of the images, or they are no uint8 images.
    """
    height, width = images.shape[-2:]
    if height % encoder.patch_size or width % encoder.patch_size:
        raise ValueError(
            f"images of {width} x {height} pixels cannot be cut into patches of {encoder.patch_size}; "
            "use sides that are multiples of it"
        )
    batch = normalise(images.to(encoder_device(encoder)), encoder.mean, encoder.std if std is None else std)
    return encoder.patches(batch).float().movedim(1, -1)


@torch.no_grad()
def image_features(encoder: Encoder, batches: Iterable[Tensor]) -> Tensor:
    """The image features of a data set, batch by batch.

    Args:
        encoder: the network.
        batches: at least one, uint8 [b, 3, H, W] each.

    Returns:
        [n, D] float32 on the CPU, in the order of the batches.
    """
    device = encoder_device(encoder)
    parts = [encoder.image(normalise(batch.to(device), encoder.mean, encoder.std)) for batch in batches]
    return torch.cat([part.float().cpu() for part in parts])
