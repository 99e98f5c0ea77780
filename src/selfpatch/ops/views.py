"""Drawn views of a batch of images of any sizes, rendered on their device: the batched form of the plain renderer.

What is drawn, and which images have which size, is known on the CPU: nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from selfpatch.ops.blur import gaussian_blur
from selfpatch.ops.colour import grey, jitter, solarize, to_some
from selfpatch.ops.images import sent
from selfpatch.ops.resampling import crop_resize

CROPPED_AT_ONCE = 2**25
"""Numbers that a tensor may hold while views are cut out: 128 MB in float32, half of it in float16."""
COLOURED_AT_ONCE = 2**25
"""The same while colours are changed, where several such tensors live at once."""


@dataclass(frozen=True)
class ViewTable:
    """What was drawn for the views of one size of a batch; on the CPU.

    Attributes:
        size: side of a view in pixels.
        values: [V, B, 16] float32, of each view all that the properties below name.
    """

    size: int
    values: Tensor

    @property
    def boxes(self) -> Tensor:
        """[V, B, 5]: (left, top, width, height, flipped) in pixels of the image as it is stored."""
        return self.values[..., :5]

    @property
    def order(self) -> Tensor:
        """[V, B, 4]: `ops.colour`'s adjustments, each at its place; NOTHING where there are none."""
        return self.values[..., 5:9]

    @property
    def strengths(self) -> Tensor:
        """[V, B, 4]: of the adjustment at each place, as `ops.colour.jitter` takes them."""
        return self.values[..., 9:13]

    @property
    def grey(self) -> Tensor:
        """[V, B]: 1 where colours are taken away."""
        return self.values[..., 13]

    @property
    def blur_radius(self) -> Tensor:
        """[V, B]: in pixels of the view; 0: no blur."""
        return self.values[..., 14]

    @property
    def solarize(self) -> Tensor:
        """[V, B]: 1 where bright levels are inverted."""
        return self.values[..., 15]


def render_views(pixels: Tensor, sizes: Tensor, tables: Sequence[ViewTable]) -> list[Tensor]:
    """Crop and resize, flip, colour jitter, grey, blur, solarize, each view with what was drawn for it.

    It agrees with the plain renderer but for rounding: by less than a level in the mean. That a batch is the same to
    the last bit holds for the same batch on the same device; in other company a pixel may round the other way.

    Args:
        pixels: [P, 3] uint8 on any device, those of all images one after the other, row by row.
        sizes: [B, 2] int64 on the CPU, (width, height) of each image.
        tables: one for each size of views.

    Returns:
        For each table uint8 [V, B, 3, S, S] on the device of the pixels.
    """
    device, batch = pixels.device, len(sizes)
    views = [pixels.new_empty((len(t.boxes), batch, 3, t.size, t.size)) for t in tables]
    widest = max(len(table.boxes) * table.size for table in tables)
    for places in _of_similar_size(sizes, widest):
        images = _unpack(pixels, sizes, places).to(product_dtype(device), memory_format=torch.contiguous_format)
        places_there = sent(places, device)
        for table, view in zip(tables, views, strict=True):
            cropped = crop_resize(images, table.boxes[:, places], table.size)
            view.index_copy_(1, places_there, cropped.to(torch.uint8))
    for table, view in zip(tables, views, strict=True):
        _change_colours(view, table)
    return views


def product_dtype(device: torch.device) -> torch.dtype:
    """What matrix products of pixels are computed in. Half precision holds levels exactly and weights to 1 / 2048; only
    CUDA devices are sure to be fast in it."""
    return torch.float16 if device.type == "cuda" else torch.float32


def _of_similar_size(sizes: Tensor, widest: int) -> Iterator[Tensor]:
    """Places of images, so many at once as memory allows; of similar height, so that little is padding."""
    order = sizes[:, 1].argsort(stable=True, descending=True)
    chosen: list[int] = []
    height = width = 0
    for place, (image_width, image_height) in zip(order.tolist(), sizes[order].tolist(), strict=True):
        height, width = max(height, image_height), max(width, image_width)
        if chosen and (len(chosen) + 1) * 3 * height * max(width, widest) > CROPPED_AT_ONCE:
            yield torch.tensor(chosen)
            chosen, height, width = [], image_height, image_width
        chosen.append(place)
    yield torch.tensor(chosen)


def _unpack(pixels: Tensor, sizes: Tensor, places: Tensor) -> Tensor:
    """[b, 3, H, W] uint8 the images at some places, padded with pixels of others to the largest sides among them."""
    firsts = (sizes.prod(1).cumsum(0) - sizes.prod(1))[places]
    width, height = sizes[places].amax(0).tolist()
    layout = sent(torch.stack([firsts, sizes[places, 0]]), pixels.device)
    first, stride = layout[..., None, None]  # [b, 1, 1] each
    rows, columns = (torch.arange(side, device=pixels.device) for side in (height, width))
    index = (first + rows[:, None] * stride + columns).clamp_(max=len(pixels) - 1)  # [b, H, W]
    return pixels[index].permute(0, 3, 1, 2)


def _change_colours(views: Tensor, table: ViewTable) -> None:
    """All but the crop, in place, so many views at once as memory allows."""
    flat = views.flatten(0, 1)
    count = max(1, COLOURED_AT_ONCE // flat[0].numel())
    order, strengths = table.order.flatten(0, 1), table.strengths.flatten(0, 1)
    to_grey, radius, to_solarize = (x.flatten() for x in (table.grey, table.blur_radius, table.solarize))
    for first in range(0, len(flat), count):
        part = slice(first, first + count)
        radii = sent(radius[part], flat.device)
        levels = jitter(flat[part].float(), order[part], strengths[part])
        levels = to_some(levels, to_grey[part] > 0, lambda x, _: grey(x).expand_as(x))
        levels = to_some(levels, radius[part] > 0, partial(_blur_some, radii))
        levels = to_some(levels, to_solarize[part] > 0, lambda x, _: solarize(x))
        flat[part] = levels.to(torch.uint8)


def _blur_some(radii: Tensor, levels: Tensor, rows: Tensor) -> Tensor:
    return gaussian_blur(levels, radii[rows], product_dtype(levels.device))
