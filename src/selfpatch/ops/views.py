"""Rendering of drawn views for a batch of images of any sizes on their device; the batched form of the plain renderer.

Draws and image sizes are known on the CPU, so rendering needs no host-device synchronisation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from selfpatch.config.sections import Resampling
from selfpatch.core.transfer import to_device
from selfpatch.ops.blur import gaussian_blur
from selfpatch.ops.colour import jitter, remove_colours, solarize, to_some
from selfpatch.ops.resampling import crop_resize

MAX_CROP_VALUES = 2**25
"""Number of values in a tensor while views are cropped: 128 MB in float32, half of it in float16."""
MAX_COLOUR_VALUES = 2**25
"""Number of values in a tensor while colours are changed, with several such tensors at once."""


@dataclass(frozen=True)
class ViewTable:
    """Draws for the views of one size of a batch, on the CPU."""

    sides: tuple[int, int]
    """Height and width of a view in pixels."""
    values: Tensor
    """[V, B, 16] float32, with these columns for each view:

    0 to 4: crop box (left, top, width, height, flipped) in pixels of the stored image;
    5 to 8: order of the adjustments, 9 to 12: their strengths, as `colour.jitter` takes both;
    13: 1 if colours are removed; 14: blur radius in pixels of the view, 0 for no blur; 15: 1 if solarized.
    """
    resampling: Resampling = "bicubic"
    """Filter that resizes the crops."""

    @property
    def boxes(self) -> Tensor:
        """Crop boxes [V, B, 5]."""
        return self.values[..., :5]


def render_views(pixels: Tensor, sizes: Tensor, tables: Sequence[ViewTable]) -> list[Tensor]:
    """Crop and resize, flip, jitter colours, grey, blur and solarize each view as drawn.

    The result agrees with the plain renderer up to rounding: by less than a level in the mean. It is bit-exact for the
    same batch on the same device; in another batch a pixel may round the other way.

    Args:
        pixels: [P, 3] uint8 on any device, the rows of all images one after the other.
        sizes: [B, 2] int64 on the CPU, (width, height) of each image.
        tables: one for each size of views.

    Returns:
        For each table uint8 [V, B, 3, height, width] on the device of the pixels.
    """
    device, batch = pixels.device, len(sizes)
    views = [pixels.new_empty((len(t.boxes), batch, 3, *t.sides)) for t in tables]
    widest = max(len(table.boxes) * table.sides[1] for table in tables)
    for indices in _batches_of_similar_size(sizes, widest):
        images = _unpack(pixels, sizes, indices).to(product_dtype(device), memory_format=torch.contiguous_format)
        device_indices = to_device(indices, device)
        for table, view in zip(tables, views, strict=True):
            cropped = crop_resize(images, table.boxes[:, indices], table.sides, table.resampling)
            view.index_copy_(1, device_indices, cropped.to(torch.uint8))
    for table, view in zip(tables, views, strict=True):
        _change_colours(view, table)
    return views


def product_dtype(device: torch.device) -> torch.dtype:
    """Return the type for matrix products of pixels.

    Half precision holds levels exactly and weights to 1 / 2048; only CUDA devices are certain to be fast in it.
    """
    return torch.float16 if device.type == "cuda" else torch.float32


def _batches_of_similar_size(sizes: Tensor, widest: int) -> Iterator[Tensor]:
    """Yield indices of as many images as memory allows, of similar height, so that padding is small."""
    order = sizes[:, 1].argsort(stable=True, descending=True)
    chosen: list[int] = []
    height = width = 0
    for index, (image_width, image_height) in zip(order.tolist(), sizes[order].tolist(), strict=True):
        height, width = max(height, image_height), max(width, image_width)
        if chosen and (len(chosen) + 1) * 3 * height * max(width, widest) > MAX_CROP_VALUES:
            yield torch.tensor(chosen)
            chosen, height, width = [], image_height, image_width
        chosen.append(index)
    yield torch.tensor(chosen)


def _unpack(pixels: Tensor, sizes: Tensor, indices: Tensor) -> Tensor:
    """Return images [b, 3, H, W] uint8, padded with other images' pixels to the largest sides among them."""
    firsts = (sizes.prod(1).cumsum(0) - sizes.prod(1))[indices]
    width, height = sizes[indices].amax(0).tolist()
    layout = to_device(torch.stack([firsts, sizes[indices, 0]]), pixels.device)
    first, stride = layout[..., None, None]  # [b, 1, 1] each
    rows, columns = (torch.arange(side, device=pixels.device) for side in (height, width))
    index = (first + rows[:, None] * stride + columns).clamp_(max=len(pixels) - 1)  # [b, H, W]
    return pixels[index].permute(0, 3, 1, 2)


def _change_colours(views: Tensor, table: ViewTable) -> None:
    """Apply all changes but the crop, in place, to as many views at once as memory allows."""
    flat = views.flatten(0, 1)
    count = max(1, MAX_COLOUR_VALUES // flat[0].numel())
    blur = partial(gaussian_blur, dtype=product_dtype(flat.device))
    for part, values in zip(flat.split(count), table.values.flatten(0, 1).split(count), strict=True):
        _, order, strengths, drawn = values.split([5, 4, 4, 3], dim=1)
        to_grey, radius, to_solarize = drawn.unbind(1)
        levels = jitter(part.float(), order, strengths)
        levels = to_some(levels, to_grey > 0, remove_colours)
        levels = to_some(levels, radius > 0, blur, to_device(radius, flat.device))
        levels = to_some(levels, to_solarize > 0, solarize)
        part.copy_(levels)
