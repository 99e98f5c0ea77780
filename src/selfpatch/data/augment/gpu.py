"""Batches of decoded images with drawn parameters, whose views are rendered on the training device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfpatch.core.types import Views
from selfpatch.data.augment.multicrop import ADJUSTMENTS, ViewParameters, ViewRecipe
from selfpatch.data.collate import join_fields
from selfpatch.data.decode.multichannel import Raster
from selfpatch.data.decode.pillow import Picture
from selfpatch.ops.colour import BRIGHTNESS, CONTRAST, HUE, NOTHING, SATURATION
from selfpatch.ops.views import ViewTable, render_views

_NUMBERS = {"brightness": BRIGHTNESS, "contrast": CONTRAST, "saturation": SATURATION, "hue": HUE}


@dataclass(frozen=True)
class DecodedBatch:
    """Batch on the CPU whose views are drawn but not rendered.

    The images are stored one after the other without padding: a large one costs no more than its own pixels.

    Attributes:
        pixels: [P, 3] uint8, the pixels of all images, row by row.
        sizes: [B, 2] int64, stored (width, height) of each image.
        tables: drawn parameters of the global views and, if there are any, of the local ones.
        boxes: as in `Views`, in pixels of the whole image before it was shrunk.
        samples: as in `Views`.
        masks: as in `Views`.
    """

    pixels: Tensor
    sizes: Tensor
    tables: tuple[ViewTable, ...]
    boxes: Tensor
    samples: Tensor
    masks: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Views:
        """Copy the images to a device and render their views there."""
        with torch.no_grad(), torch.autocast(torch.device(device).type, enabled=False):
            pixels = self.pixels.to(device, non_blocking=non_blocking)
            global_crops, *local = render_views(pixels, self.sizes, self.tables)
        views = Views(global_crops, local[0] if local else None, self.boxes, self.samples, self.masks)
        return views.to(device, non_blocking)


class _Stored(NamedTuple):
    pixels: Tensor  # [h, w, 3] uint8
    rows: list[list[float]]  # [V][16] as in `ViewTable.values`


class DecodingCollator:
    """Collation to `DecodedBatch`, by the methods of `collate.RenderingCollator`: the workers only decode."""

    def __init__(self, recipes: Sequence[ViewRecipe], num_global: int, max_pixels: int) -> None:
        """Prepare for the views of some recipes.

        Args:
            recipes: one per view, global views first.
            num_global: number of global views.
            max_pixels: largest number of pixels; larger images are shrunk (bicubic, antialiased). 0 shrinks none.
        """
        self._groups = [g for g in (recipes[:num_global], recipes[num_global:]) if g]
        self._max_pixels = max_pixels

    def prepare(self, image: Picture, parameters: Sequence[ViewParameters]) -> _Stored:
        """Shrink a large image and return its pixels with the parameters of its views."""
        width, height = image.size
        image = shrink(image, self._max_pixels)
        if isinstance(image, Raster):
            pixels = image.pixels.permute(1, 2, 0).contiguous()
        else:
            pixels = torch.from_numpy(np.array(image))
        assert pixels.dtype == torch.uint8, "only images of 8 bits and three colours are rendered on a device"
        assert pixels.shape[2] == 3, "only images of 8 bits and three colours are rendered on a device"
        scale = image.size[0] / width, image.size[1] / height
        return _Stored(pixels, [_row(p, scale) for p in parameters])

    def collate(self, prepared: Sequence[Any], boxes: Tensor, samples: Tensor, masks: Tensor | None) -> DecodedBatch:
        """Put the pixels of prepared images one after the other."""
        values = torch.tensor([image.rows for image in prepared], dtype=torch.float32).transpose(0, 1)  # [V, B, 16]
        by_group = values.split([len(group) for group in self._groups])
        return DecodedBatch(
            pixels=torch.cat([image.pixels.flatten(0, 1) for image in prepared]),
            sizes=torch.tensor([[image.pixels.shape[1], image.pixels.shape[0]] for image in prepared]),
            tables=tuple(ViewTable(g[0].size, v.contiguous()) for g, v in zip(self._groups, by_group, strict=True)),
            boxes=boxes,
            samples=samples,
            masks=masks,
        )

    def join(self, parts: Sequence[Any], pin_memory: bool) -> DecodedBatch:
        """Join parts to a batch; sizes and tables, which are read on the CPU, are never page-locked."""
        by_group = zip(*(part.tables for part in parts), strict=True)
        return DecodedBatch(
            sizes=torch.cat([part.sizes for part in parts]),
            tables=tuple(ViewTable(g[0].size, torch.cat([t.values for t in g], 1)) for g in by_group),
            **join_fields(parts, {"pixels": 0, "boxes": 1, "samples": 0, "masks": 1}, pin_memory),
        )


def shrink(image: Picture, max_pixels: int) -> Picture:
    """Shrink an RGB image to at most `max_pixels` pixels, keeping its proportions; 0 allows any number."""
    width, height = image.size
    if not max_pixels or width * height <= max_pixels:
        return image
    if isinstance(image, Raster):
        image = Image.fromarray(image.pixels.permute(1, 2, 0).contiguous().numpy())
    share = math.sqrt(max_pixels / (width * height))
    return image.resize((max(1, int(width * share)), max(1, int(height * share))), Image.Resampling.BICUBIC)


def _row(p: ViewParameters, scale: tuple[float, float]) -> list[float]:
    """Return a row of `ViewTable.values`, given the stored pixels per pixel of the file, across and down."""
    across, down = scale
    box = [p.left * across, p.top * down, p.width * across, p.height * down, p.flip]
    order, strengths = [NOTHING] * len(ADJUSTMENTS), [1.0] * len(ADJUSTMENTS)
    for i, name in enumerate(p.jitter.order if p.jitter is not None else ()):
        order[i], strengths[i] = _NUMBERS[name], getattr(p.jitter, name)
        if name == "hue":  # torchvision truncates the shift to whole levels and lets 8 bits wrap around
            strengths[i] = int(strengths[i] * 255) % 256
    return [*box, *order, *strengths, p.grey, p.blur_radius, p.solarize]
