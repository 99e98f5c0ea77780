"""From images to batches: what a worker keeps of each image, makes a part of, and what parts are joined to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from selfpatch.core.types import Views
from selfpatch.data.augment.multicrop import ViewParameters, ViewRecipe
from selfpatch.data.decode.pillow import Picture
from selfpatch.ops.images import one_depth

Render = Callable[[Picture, int, ViewParameters], Tensor]
"""(upright image, side of the view, parameters) -> [C, side, side], uint8 or, of deeper images, float32 in [0, 1]."""


class Batch(Protocol):
    """What the loader gives: `Views` on the CPU, or what becomes Views on its way to a device."""

    def to(self, device: torch.device | str, non_blocking: bool = True) -> Views: ...


class Batching(Protocol):
    """One way from images to batches. `prepare` and `part` run in workers; only what `prepare` returns is kept while
    the other images of a part are read."""

    def prepare(self, image: Picture, parameters: Sequence[ViewParameters]) -> Any: ...

    def part(
        self,
        prepared: Sequence[Any],
        parameters: Sequence[Sequence[ViewParameters]],
        samples: Sequence[int],
        masks: Tensor | None,
    ) -> Batch:
        """
        Args:
            prepared: [B] what `prepare` returned.
            parameters: [B][V] what was drawn.
            samples: [B] places of the images.
            masks: [G, B, h, w] or None.
        """
        ...

    def join(self, parts: Sequence[Any], pin_memory: bool) -> Batch: ...


class RenderedBatches:
    """Workers render; batches are `Views`."""

    def __init__(self, recipes: Sequence[ViewRecipe], num_global: int, render: Render) -> None:
        self._recipes, self._num_global, self._render = recipes, num_global, render

    def prepare(self, image: Picture, parameters: Sequence[ViewParameters]) -> list[Tensor]:
        """[V] of [C, S, S]."""
        return [self._render(image, r.size, p) for r, p in zip(self._recipes, parameters, strict=True)]

    def part(
        self,
        prepared: Sequence[list[Tensor]],
        parameters: Sequence[Sequence[ViewParameters]],
        samples: Sequence[int],
        masks: Tensor | None,
    ) -> Views:
        views = list(zip(*prepared, strict=True))  # [V][B]
        return Views(
            global_crops=_stacked(views[: self._num_global]),
            local_crops=_stacked(views[self._num_global :]) if len(views) > self._num_global else None,
            boxes=stack_boxes(parameters),
            samples=torch.tensor(samples, dtype=torch.int64),
            masks=masks,
        )

    def join(self, parts: Sequence[Views], pin_memory: bool) -> Views:
        local_crops = [v.local_crops for v in parts if v.local_crops is not None]
        return Views(
            global_crops=join_tensors([v.global_crops for v in parts], 1, pin_memory),
            local_crops=join_tensors(local_crops, 1, pin_memory) if local_crops else None,
            boxes=join_tensors([v.boxes for v in parts], 1, pin_memory),
            samples=join_tensors([v.samples for v in parts], 0, pin_memory),
            masks=join_masks([v.masks for v in parts], pin_memory),
        )


def _stacked(views: Sequence[Sequence[Tensor]]) -> Tensor:
    """[V][B] crops of one size -> [V, B, C, S, S], copied once."""
    crops = one_depth([crop for view in views for crop in view])
    return torch.stack(crops).unflatten(0, (len(views), -1))


def stack_boxes(parameters: Sequence[Sequence[ViewParameters]]) -> Tensor:
    """[B][V] what was drawn -> [V, B, 5], `Views.boxes`."""
    boxes = torch.tensor([[p.box for p in views] for views in parameters], dtype=torch.float32)
    return boxes.transpose(0, 1).contiguous()


def join_masks(parts: Sequence[Tensor | None], pin_memory: bool) -> Tensor | None:
    masks = [masks for masks in parts if masks is not None]
    return join_tensors(masks, 1, pin_memory) if masks else None


def join_tensors(parts: Sequence[Tensor], dim: int, pin_memory: bool) -> Tensor:
    """The parts as one tensor; a part of 8 bits becomes float where another is deeper."""
    if len(parts) == 1 and not pin_memory:
        return parts[0]
    shape = list(parts[0].shape)
    shape[dim] = sum(part.shape[dim] for part in parts)
    parts = one_depth(parts)
    joined = torch.empty(shape, dtype=parts[0].dtype, pin_memory=pin_memory)
    return torch.cat(parts, dim, out=joined)
