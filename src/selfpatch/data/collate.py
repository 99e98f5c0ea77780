"""Collation of images into batches: prepared one by one in workers, collated to parts, joined to batches."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from selfpatch.config.schema import Size
from selfpatch.core.types import Views
from selfpatch.data.augment.multicrop import ViewParameters, ViewRecipe, view_groups
from selfpatch.data.decode.pillow import Picture
from selfpatch.ops.images import to_common_dtype

Render = Callable[[Picture, Size, ViewParameters], Tensor]
"""(upright image, size of the view, parameters) -> [C, S, S'], uint8, or float32 in [0, 1] for deeper images."""


class Batch(Protocol):
    """Batch of a loader on the CPU: `Views`, or data that become `Views` on a device."""

    def to(self, device: torch.device | str) -> Views:
        """Return the views on a device."""
        ...


class RenderingCollator:
    """Collation to `Views`: the workers render.

    `prepare` and `collate` run in workers. Only the result of `prepare` is kept until a part is complete.
    """

    def __init__(
        self,
        recipes: Sequence[ViewRecipe],
        num_global: int,
        render: Render,
        pair_recipes: Sequence[ViewRecipe] = (),
        anchor_recipes: Sequence[ViewRecipe] = (),
    ) -> None:
        self._groups, self._render = view_groups(recipes, num_global, pair_recipes, anchor_recipes), render
        self._recipes = [*recipes, *pair_recipes, *anchor_recipes]

    def max_bytes(self, channels: int) -> int:
        """Return the number of bytes of an image's views, of 8 bits if they are RGB, else of 32."""
        return channels * (1 if channels == 3 else 4) * sum(math.prod(recipe.sides) for recipe in self._recipes)

    def prepare(self, image: Picture, parameters: Sequence[ViewParameters]) -> list[Tensor]:
        """Render the views [V] of an image."""
        return [self._render(image, r.size, p) for r, p in zip(self._recipes, parameters, strict=True)]

    def collate(self, prepared: Sequence[Any], fields: Mapping[str, Tensor | None]) -> Views:
        """Collate the results [B] of `prepare` to a part of a batch; `fields` are the other fields of `Views`."""
        views = iter(zip(*prepared, strict=True))  # [V][B]
        return make_views({name: _stack([next(views) for _ in group]) for name, group in self._groups.items()}, fields)

    def join(self, parts: Sequence[Any], pin_memory: bool) -> Views:
        """Join parts to a batch, in page-locked memory if `pin_memory` is set."""
        names = ("global_crops", "local_crops", "clean_crops", "contained_crops", "anchor_crops")
        crops = dict.fromkeys(names, 1)
        return Views(**join_fields(parts, crops | FIELD_DIMS, pin_memory))


FIELD_DIMS = {"boxes": 1, "samples": 0, "masks": 1, "pair_boxes": 1}
"""Dimension of the images in each field of `Views` that holds no crops."""


def make_views(crops: Mapping[str, Tensor], fields: Mapping[str, Tensor | None]) -> Views:
    """Return `Views` of crops [V, B, C, S, S'] by name and of its other fields; without global crops, of 0 of them."""
    some = next(iter(crops.values()))
    no_global_crops = {"global_crops": some[:0, ..., :1, :1]}
    return Views(**{"local_crops": None, **no_global_crops, **crops, **fields})  # type: ignore[arg-type]


def _stack(views: Sequence[Sequence[Tensor]]) -> Tensor:
    """Stack crops [V][B] of one size to [V, B, C, S, S'] with a single copy."""
    crops = to_common_dtype([crop for view in views for crop in view])
    return torch.stack(crops).unflatten(0, (len(views), -1))


def stack_boxes(parameters: Sequence[Sequence[ViewParameters]]) -> Tensor:
    """Return the boxes [V, B, 5] of drawn parameters [B][V], as `Views.boxes`."""
    boxes = torch.tensor([[p.box for p in views] for views in parameters], dtype=torch.float32)
    return boxes.reshape(len(parameters), -1, 5).transpose(0, 1).contiguous()


def join_fields(parts: Sequence[Any], dims: Mapping[str, int], pin_memory: bool) -> dict[str, Any]:
    """Join fields of parts, each along its own dimension; a field that is None in the parts stays None."""
    columns = {name: [getattr(part, name) for part in parts] for name in dims}
    return {name: None if x[0] is None else _join(x, dims[name], pin_memory) for name, x in columns.items()}


def _join(parts: Sequence[Tensor], dim: int, pin_memory: bool) -> Tensor:
    """Concatenate tensors; 8-bit ones become float if another is deeper."""
    if len(parts) == 1 and not pin_memory:
        return parts[0]
    parts = to_common_dtype(parts)
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    return torch.cat(parts, dim, out=torch.empty(shape, dtype=parts[0].dtype, pin_memory=pin_memory))
