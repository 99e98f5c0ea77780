"""Features of images in batches, without gradient, on the encoder's device."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from selfpatch.core.types import Encoder
from selfpatch.models.finite_features import checked_features
from selfpatch.ops.images import normalise


@contextlib.contextmanager
def evaluating(encoder: Encoder) -> Iterator[None]:
    """Keep a network in evaluation mode: no drop path, and batch norms with their running statistics."""
    network = encoder if isinstance(encoder, nn.Module) else nn.Module()
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


@torch.no_grad()
def patch_features(encoder: Encoder, images: Tensor, *, std: Sequence[float] | None = None) -> Tensor:
    """Return the patch features of one batch, [B, h, w, D] float32 on the encoder's device.

    Args:
        encoder: the network.
        images: [B, C, H, W] as `normalise` takes them; H and W are multiples of the encoder's patch size.
        std: standard deviation to normalise with. If None, the encoder's own.

    Raises:
        ValueError: the patch size does not divide the sides of the images, or `normalise` refuses them.
    """
    height, width = images.shape[-2:]
    if height % encoder.patch_size or width % encoder.patch_size:
        raise ValueError(
            f"images of {width} x {height} pixels cannot be cut into patches of {encoder.patch_size}; "
            "use sides that are multiples of it"
        )
    batch = normalise(images.to(encoder.device), encoder.mean, encoder.std if std is None else std)
    return checked_features(encoder.patches(batch), batch).float().movedim(1, -1)


@torch.no_grad()
def mean_patch_features(encoder: Encoder, batches: Iterable[Tensor]) -> Tensor:
    """Return the mean patch feature of each image, [n, D] on the CPU; arguments as for `image_features`."""
    return torch.cat([patch_features(encoder, batch).mean((1, 2)).cpu() for batch in batches])


@torch.no_grad()
def image_features(encoder: Encoder, batches: Iterable[Tensor]) -> Tensor:
    """Return the image features of a data set, [n, D] float32 on the CPU, in the order of the batches.

    Args:
        encoder: the network.
        batches: at least one batch, each [b, C, H, W] as `normalise` takes it.
    """
    inputs = (normalise(batch.to(encoder.device), encoder.mean, encoder.std) for batch in batches)
    parts = [checked_features(encoder.image(batch), batch) for batch in inputs]  # the device is waited for once
    return torch.cat([part.float().cpu() for part in parts])
