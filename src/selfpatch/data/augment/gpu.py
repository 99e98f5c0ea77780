"""Batches of decoded images with drawn parameters, whose views are rendered on the training device."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from selfpatch.core.transfer import to_device
from selfpatch.core.types import Views
from selfpatch.data.augment.multicrop import ADJUSTMENTS, ViewParameters, ViewRecipe, view_groups
from selfpatch.data.collate import FIELD_DIMS, join_fields, make_views
from selfpatch.data.decode.multichannel import Raster
from selfpatch.data.decode.pillow import Picture
from selfpatch.ops import colour
from selfpatch.ops.views import ViewTable, render_views

_NUMBERS = dict(zip(ADJUSTMENTS, (colour.BRIGHTNESS, colour.CONTRAST, colour.SATURATION, colour.HUE), strict=True))


@dataclass(frozen=True)
class DecodedBatch:
    """Batch on the CPU whose views are drawn but not rendered.

    The images are stored one after the other without padding: a large one costs no more than its own pixels.
    """

    pixels: Tensor
    """[P, 3] uint8, the pixels of all images, row by row."""
    sizes: Tensor
    """[B, 2] int64, stored (width, height) of each image."""
    tables: Mapping[str, ViewTable]
    """Drawn parameters of the views by the name of their crops in `Views`."""
    boxes: Tensor
    """Boxes as `Views` has them, in pixels of the whole image before it was shrunk."""
    samples: Tensor
    masks: Tensor | None = None
    pair_boxes: Tensor | None = None

    def to(self, device: torch.device | str) -> Views:
        """Copy the images to a device and render their views there."""
        with torch.no_grad(), torch.autocast(torch.device(device).type, enabled=False):
            pixels = to_device(self.pixels, device)
            rendered = render_views(pixels, self.sizes, list(self.tables.values()))
        crops = dict(zip(self.tables, rendered, strict=True))
        return make_views(crops, {name: getattr(self, name) for name in FIELD_DIMS}).to(device)


class DecodingCollator:
    """Collation to `DecodedBatch`, by the methods of `collate.RenderingCollator`: the workers only decode.

    Images of more than `max_pixels` pixels are shrunk (bicubic, antialiased); 0 shrinks none.
    """

    def __init__(
        self,
        recipes: Sequence[ViewRecipe],
        num_global: int,
        max_pixels: int,
        pair_recipes: Sequence[ViewRecipe] = (),
        anchor_recipes: Sequence[ViewRecipe] = (),
    ) -> None:
        self._groups = view_groups(recipes, num_global, pair_recipes, anchor_recipes)
        self._max_pixels = max_pixels

    def max_bytes(self, channels: int) -> int:
        """Return the largest number of bytes of an image, or 0 if it is unlimited."""
        return channels * self._max_pixels

    def prepare(self, image: Picture, parameters: Sequence[ViewParameters]) -> tuple[Tensor, list[list[float]]]:
        """Return the pixels [h, w, 3] of an image, shrunk if it is large, and the rows [V][16] of its `ViewTable`."""
        stored = shrink(image, self._max_pixels)
        scale = stored.size[0] / image.size[0], stored.size[1] / image.size[1]
        pixels = Raster.of(stored).pixels.permute(1, 2, 0).contiguous()
        assert (pixels.dtype, pixels.shape[2]) == (torch.uint8, 3), (
            "a device renders images of 8 bits and three colours"
        )
        return pixels, [_row(p, scale) for p in parameters]

    def collate(self, prepared: Sequence[Any], fields: Mapping[str, Any]) -> DecodedBatch:
        """Put the pixels of prepared images one after the other; `fields` are those of `Views` besides the crops."""
        pixels, rows = zip(*prepared, strict=True)
        values = torch.tensor(rows, dtype=torch.float32).transpose(0, 1)  # [V, B, 16]
        by_group = zip(self._groups.items(), values.split([*map(len, self._groups.values())]), strict=True)
        return DecodedBatch(
            pixels=torch.cat([image.flatten(0, 1) for image in pixels]),
            sizes=torch.tensor([[image.shape[1], image.shape[0]] for image in pixels]),
            tables={name: ViewTable(g[0].sides, v.contiguous(), g[0].resampling) for (name, g), v in by_group},
            **fields,
        )

    def join(self, parts: Sequence[Any], pin_memory: bool) -> DecodedBatch:
        """Join parts to a batch; sizes and tables, which are read on the CPU, are never page-locked."""
        tables = {name: [part.tables[name] for part in parts] for name in parts[0].tables}
        return DecodedBatch(
            sizes=torch.cat([part.sizes for part in parts]),
            tables={n: replace(t[0], values=torch.cat([x.values for x in t], 1)) for n, t in tables.items()},
            **join_fields(parts, {"pixels": 0} | FIELD_DIMS, pin_memory),
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
    order, strengths = [colour.NOTHING] * len(ADJUSTMENTS), [1.0] * len(ADJUSTMENTS)
    for i, name in enumerate(p.jitter.order if p.jitter is not None else ()):
        order[i], strengths[i] = _NUMBERS[name], getattr(p.jitter, name)
        if name == "hue":  # torchvision truncates the shift to whole levels and lets 8 bits wrap around
            strengths[i] = int(strengths[i] * 255) % 256
    return [*box, *order, *strengths, p.grey, p.blur_radius, p.solarize]
