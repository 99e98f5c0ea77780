"""Benchmark of the training loader: the plain, fast and device renderers, whole and in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.timing import Case
from selfpatch.config.sections import CropConfig, LoaderConfig
from selfpatch.core.types import Views
from selfpatch.data.augment.backends import BACKENDS, Name, RenderBackend
from selfpatch.data.augment.multicrop import (
    ADJUSTMENTS,
    ColourJitter,
    ViewParameters,
    ViewRecipe,
    dino_views,
    draw_view,
    generator,
)
from selfpatch.data.augment.opencv import fast_rendering_available
from selfpatch.data.collate import Batch, Render
from selfpatch.data.decode.pillow import Picture, Read
from selfpatch.data.loader import CropLoader
from selfpatch.data.sample_images import sample_photographs
from selfpatch.data.sources.image_files import ImageFile
from selfpatch.data.sources.index import ImageIndex

NUM_IMAGES = 16
"""Photographs per call, spread evenly over the folder."""
DEVICE_BATCH = 128
"""Photographs per call where a GPU renders them."""

CPU_BACKENDS: tuple[Name, ...] = ("plain", "fast") if fast_rendering_available() else ("plain",)
DEVICE_BACKENDS: tuple[Name, ...] = ("plain", "device")

Recipes = tuple[ViewRecipe, ...]
Parameters = list[list[ViewParameters]]
"""[images][views] drawn parameters."""


def cases(device: torch.device, folder: Path | None = None) -> Iterator[Case]:
    """Yield cases with DINO's ten views of photographs in a folder (default: the built-in samples)."""
    index = ImageIndex.open(sample_photographs() / "training" if folder is None else folder)
    recipes = dino_views(CropConfig())
    yield from _cpu_cases(index, recipes)
    yield from _device_cases(index, recipes, device)


def _cpu_cases(index: ImageIndex, recipes: Recipes) -> Iterator[Case]:
    indices = _spread(index, NUM_IMAGES)
    files = [index.file(int(i)) for i in indices]
    backends = {name: BACKENDS[name] for name in CPU_BACKENDS}

    def case(name: str, calls: dict[Name, Callable[[], object]]) -> Case:
        return Case(name, {backend: _in_one_thread(call) for backend, call in calls.items()}, len(files))

    yield case(
        "read, draw, render",
        {name: partial(views_of_files, files, recipes, backend) for name, backend in backends.items()},
    )
    yield case("CropLoader without workers", {name: partial(_load, index, indices, recipes, name) for name in backends})
    yield case("read", {name: partial(_read, files, backend.read) for name, backend in backends.items()})
    pictures = {name: _read(files, backend.read) for name, backend in backends.items()}
    draw = _in_one_thread(partial(_draw, pictures["plain"], recipes))
    yield Case("draw", {"draw": draw}, len(files))
    drawn = _draw(pictures["plain"], recipes)
    for operation, change in _operations().items():
        changed = [[change(p) for p in views] for views in drawn]
        yield case(
            operation,
            {
                name: partial(_render, pictures[name], recipes, changed, backend.render)
                for name, backend in backends.items()
                if backend.render is not None
            },
        )


def _device_cases(index: ImageIndex, recipes: Recipes, device: torch.device) -> Iterator[Case]:
    """Yield cases where the device renders; on a CPU the batched renderer is there to be tested, not to be fast."""
    indices = _spread(index, DEVICE_BATCH if device.type == "cuda" else NUM_IMAGES)
    load = partial(_load, index, indices, recipes)
    yield Case("work of a loader process", {name: partial(load, name) for name in DEVICE_BACKENDS}, len(indices))
    calls: dict[str, Callable[[], object]] = {
        name: partial(_files_to_views, load, name, device) for name in DEVICE_BACKENDS
    }
    yield Case(f"files to views on {device.type}, one process", calls, len(indices))


def _spread(index: ImageIndex, count: int) -> np.ndarray:
    return np.unique(np.linspace(0, len(index) - 1, min(count, len(index))).astype(int))


def _in_one_thread(call: Callable[[], object]) -> Callable[[], object]:
    """Limit a call to one thread, as in a loader process."""

    @wraps(call)
    def limited() -> object:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return call()
        finally:
            torch.set_num_threads(threads)

    return limited


def _operations() -> dict[str, Callable[[ViewParameters], ViewParameters]]:
    """Return functions that keep the crop and a single operation of a view's parameters, by name."""
    crop = partial(replace, flip=False, jitter=None, grey=False, blur_radius=0.0, solarize=False)
    jitter = ColourJitter(brightness=1.2, contrast=1.2, saturation=1.2, hue=0.08, order=ADJUSTMENTS)
    changes: dict[str, dict[str, Any]] = {
        "flip": {"flip": True},
        **{name: {"jitter": replace(jitter, order=(name,))} for name in ADJUSTMENTS},
        "all four adjustments": {"jitter": jitter},
        "grey": {"grey": True},
        "blur": {"blur_radius": 1.0},
        "solarize": {"solarize": True},
    }
    return {
        "render": lambda p: p,
        "crop": crop,
        **{f"crop, {name}": partial(crop, **change) for name, change in changes.items()},
    }


def _read(files: Sequence[ImageFile], read: Read) -> list[Picture]:
    return [read(file, 3) for file in files]


def _draw(pictures: list[Picture], recipes: Recipes) -> Parameters:
    return [
        [draw_view(recipe, picture.size, generator(0, 0, number, view)) for view, recipe in enumerate(recipes)]
        for number, picture in enumerate(pictures)
    ]


def _render(pictures: list[Picture], recipes: Recipes, parameters: Parameters, render: Render) -> list[list[Tensor]]:
    return [
        [render(picture, recipe.size, p) for recipe, p in zip(recipes, views, strict=True)]
        for picture, views in zip(pictures, parameters, strict=True)
    ]


def views_of_files(files: Sequence[ImageFile], recipes: Recipes, backend: RenderBackend) -> None:
    """Read, draw and render all views, one photograph after the other."""
    assert backend.render is not None
    for number, file in enumerate(files):
        picture = backend.read(file, 3)
        for view, recipe in enumerate(recipes):
            backend.render(picture, recipe.size, draw_view(recipe, picture.size, generator(0, 0, number, view)))


def _load(index: ImageIndex, indices: np.ndarray, recipes: Recipes, renderer: Name) -> Batch:
    """Load one batch of all the images in this process."""
    config = LoaderConfig(workers=0, render=renderer, max_pixels=0)
    ((batch,),) = CropLoader(index, indices, recipes, config, batch_size=len(indices), seed=0).steps(0, 1)
    return batch


def _files_to_views(load: Callable[[Name], Batch], renderer: Name, device: torch.device) -> Views:
    return load(renderer).to(device)
