"""Batches of decoded images and of what was drawn for their views, which become pixels on the device that trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from selfpatch.core.types import Views
from selfpatch.data.augment.multicrop import ADJUSTMENTS, ViewParameters, ViewRecipe
from selfpatch.data.collate import join_masks, join_tensors, stack_boxes
from selfpatch.data.decode.multichannel import Raster
from selfpatch.data.decode.pillow import Picture
from selfpatch.ops.colour import BRIGHTNESS, CONTRAST, HUE, NOTHING, SATURATION
from selfpatch.ops.views import ViewTable, render_views

_NUMBERS = {"brightness": BRIGHTNESS, "contrast": CONTRAST, "saturation": SATURATION, "hue": HUE}


@dataclass(frozen=True)
class DecodedBatch:
    """A batch whose views are drawn but not rendered; on the CPU.

    The images lie one after the other without padding, so that a large one costs no more than its own pixels.

    Attributes:
        pixels: [P, 3] uint8, those of all images, row by row.
        sizes: [B, 2] int64, (width, height) of each image as it is stored.
        tables: what was drawn, of the global views and, if there are any, of the local ones.
        boxes, samples, masks: as `Views` has them; boxes are in pixels of the whole image before it was shrunk.
    """

    pixels: Tensor
    sizes: Tensor
    tables: tuple[ViewTable, ...]
    boxes: Tensor
    samples: Tensor
    masks: Tensor | None = None

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Views:
        """Copies the images to a device and renders their views there."""
        with torch.no_grad(), torch.autocast(torch.device(device).type, enabled=False):
            pixels = self.pixels.to(device, non_blocking=non_blocking)
            crops = render_views(pixels, self.sizes, self.tables)
        return Views(
            global_crops=crops[0],
            local_crops=crops[1] if len(crops) > 1 else None,
            boxes=self.boxes.to(device, non_blocking=non_blocking),
            samples=self.samples.to(device, non_blocking=non_blocking),
            masks=None if self.masks is None else self.masks.to(device, non_blocking=non_blocking),
        )


class _Stored(NamedTuple):
    pixels: Tensor  # [h, w, 3] uint8
    scale: tuple[float, float]  # stored pixels per pixel of the file, across and down


class DecodedBatches:
    """Workers only decode; batches are `DecodedBatch`es."""

    def __init__(self, recipes: Sequence[ViewRecipe], num_global: int, max_pixels: int) -> None:
        """
        Args:
            recipes: one a view, global views first.
            num_global: how many of them are global.
            max_pixels: larger images are shrunk (bicubic, antialiased) to so many; 0: none is.
        """
        self._groups = [g for g in (recipes[:num_global], recipes[num_global:]) if g]
        self._max_pixels = max_pixels

    def prepare(self, image: Picture, parameters: Sequence[ViewParameters]) -> _Stored:
        width, height = image.size
        image = shrink(image, self._max_pixels)
        if isinstance(image, Raster):
            pixels = image.pixels.permute(1, 2, 0).contiguous()
        else:
            pixels = torch.from_numpy(np.array(image))
        assert pixels.dtype == torch.uint8, "build.py gives this way to images of 8 bits and three colours only"
        assert pixels.shape[2] == 3, "and so it does here"
        return _Stored(pixels, (image.size[0] / width, image.size[1] / height))

    def part(
        self,
        prepared: Sequence[_Stored],
        parameters: Sequence[Sequence[ViewParameters]],
        samples: Sequence[int],
        masks: Tensor | None,
    ) -> DecodedBatch:
        rows = [[_row(p, s.scale) for p in views] for s, views in zip(prepared, parameters, strict=True)]
        values = torch.tensor(rows, dtype=torch.float32).transpose(0, 1)  # [V, B, 16]
        by_group = values.split([len(group) for group in self._groups])
        return DecodedBatch(
            pixels=torch.cat([s.pixels.flatten(0, 1) for s in prepared]),
            sizes=torch.tensor([[s.pixels.shape[1], s.pixels.shape[0]] for s in prepared]),
            tables=tuple(ViewTable(g[0].size, v.contiguous()) for g, v in zip(self._groups, by_group, strict=True)),
            boxes=stack_boxes(parameters),
            samples=torch.tensor(samples, dtype=torch.int64),
            masks=masks,
        )

    def join(self, parts: Sequence[DecodedBatch], pin_memory: bool) -> DecodedBatch:
        by_group = zip(*(part.tables for part in parts), strict=True)
        return DecodedBatch(
            pixels=join_tensors([part.pixels for part in parts], 0, pin_memory),
            sizes=torch.cat([part.sizes for part in parts]),
            tables=tuple(ViewTable(g[0].size, torch.cat([t.values for t in g], 1)) for g in by_group),
            boxes=join_tensors([part.boxes for part in parts], 1, pin_memory),
            samples=join_tensors([part.samples for part in parts], 0, pin_memory),
            masks=join_masks([part.masks for part in parts], pin_memory),
        )


def shrink(image: Picture, max_pixels: int) -> Picture:
    """An RGB image of at most so many pixels, in its proportions; 0: of any number."""
    width, height = image.size
    if not max_pixels or width * height <= max_pixels:
        return image
    if isinstance(image, Raster):
        image = Image.fromarray(image.pixels.permute(1, 2, 0).contiguous().numpy())
    share = math.sqrt(max_pixels / (width * height))
    return image.resize((max(1, int(width * share)), max(1, int(height * share))), Image.Resampling.BICUBIC)


def _row(p: ViewParameters, scale: tuple[float, float]) -> list[float]:
    """What was drawn for a view of an image that is stored at some scale, as `ViewTable.values` has it."""
    across, down = scale
    box = [p.left * across, p.top * down, p.width * across, p.height * down, p.flip]
    order, strengths = [NOTHING] * len(ADJUSTMENTS), [1.0] * len(ADJUSTMENTS)
    for place, name in enumerate(p.jitter.order if p.jitter is not None else ()):
        order[place], strengths[place] = _NUMBERS[name], getattr(p.jitter, name)
        if name == "hue":  # torchvision cuts the shift off to whole levels and lets 8 bits wrap around
            strengths[place] = int(strengths[place] * 255) % 256
    return [*box, *order, *strengths, p.grey, p.blur_radius, p.solarize]
