"""Collation of images into batches: prepared one by one in workers, collated to parts, joined to batches."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from selfpatch.core.types import Views
from selfpatch.data.augment.multicrop import ViewParameters, ViewRecipe
from selfpatch.data.decode.pillow import Picture
from selfpatch.ops.images import to_common_dtype

Render = Callable[[Picture, int, ViewParameters], Tensor]
"""(upright image, side of the view, parameters) -> [C, side, side], uint8, or float32 in [0, 1] for deeper images."""


class Batch(Protocol):
    """Batch of a loader on the CPU: `Views`, or data that become `Views` on a device."""

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Views:
        """Return the views on a device."""
        ...


class RenderingCollator:
    """Collation to `Views`: the workers render.

    `prepare` and `collate` run in workers. Only the result of `prepare` is kept until a part is complete.
    """

    def __init__(self, recipes: Sequence[ViewRecipe], num_global: int, render: Render) -> None:
        self._recipes, self._num_global, self._render = recipes, num_global, render

    def prepare(self, image: Picture, parameters: Sequence[ViewParameters]) -> list[Tensor]:
        """Render the views [V] of an image."""
        return [self._render(image, r.size, p) for r, p in zip(self._recipes, parameters, strict=True)]

    def collate(self, prepared: Sequence[Any], boxes: Tensor, samples: Tensor, masks: Tensor | None) -> Views:
        """Collate the results [B] of `prepare` to a part of a batch; the other arguments are fields of `Views`."""
        views = list(zip(*prepared, strict=True))  # [V][B]
        global_crops, *local = [_stack(g) for g in (views[: self._num_global], views[self._num_global :]) if g]
        return Views(global_crops, local[0] if local else None, boxes, samples, masks)

    def join(self, parts: Sequence[Any], pin_memory: bool) -> Views:
        """Join parts to a batch, in page-locked memory if `pin_memory` is set."""
        dims = {"global_crops": 1, "local_crops": 1, "boxes": 1, "samples": 0, "masks": 1}
        return Views(**join_fields(parts, dims, pin_memory))


def _stack(views: Sequence[Sequence[Tensor]]) -> Tensor:
    """Stack crops [V][B] of one size to [V, B, C, S, S] with a single copy."""
    crops = to_common_dtype([crop for view in views for crop in view])
    return torch.stack(crops).unflatten(0, (len(views), -1))


def stack_boxes(parameters: Sequence[Sequence[ViewParameters]]) -> Tensor:
    """Return the boxes [V, B, 5] of drawn parameters [B][V], as `Views.boxes`."""
    boxes = torch.tensor([[p.box for p in views] for views in parameters], dtype=torch.float32)
    return boxes.transpose(0, 1).contiguous()


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
