"""The training loader on one core: Pillow's way from files to views against the fast one, whole and in its parts."""

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
from selfpatch.data.augment.backends import RenderBackend
from selfpatch.data.augment.multicrop import (
    ADJUSTMENTS,
    ColourJitter,
    ViewParameters,
    ViewRecipe,
    dino_views,
    draw_view,
    generator,
)
from selfpatch.data.augment.opencv import render_fast
from selfpatch.data.augment.pillow import render
from selfpatch.data.collate import Render
from selfpatch.data.decode.fast import read_fast
from selfpatch.data.decode.pillow import Picture, Read, read_picture
from selfpatch.data.loader import CropLoader
from selfpatch.data.sample_images import sample_photographs
from selfpatch.data.sources.image_files import ImageFile
from selfpatch.data.sources.index import ImageIndex

IMAGES = 16
"""Photographs a call handles, spread evenly over the folder."""

WAYS: dict[str, tuple[Read, Render]] = {"plain": (read_picture, render), "fast": (read_fast, render_fast)}

Parameters = list[list[ViewParameters]]
"""[images][views] what was drawn."""


def cases(folder: Path | None = None) -> Iterator[Case]:
    """DINO's ten views of photographs in a folder; None: of the built-in samples."""
    index = ImageIndex.open(sample_photographs() / "training" if folder is None else folder)
    places = np.unique(np.linspace(0, len(index) - 1, IMAGES).astype(int))
    files, recipes = [index.file(int(place)) for place in places], dino_views(CropConfig())

    def case(name: str, calls: dict[str, Callable[[], object]]) -> Case:
        return Case(name, {way: _in_one_thread(call) for way, call in calls.items()}, len(files))

    yield case(
        "read, draw, render",
        {way: partial(_views_of_files, files, recipes, read, render) for way, (read, render) in WAYS.items()},
    )
    yield case(
        "CropLoader without workers",
        {way: partial(_batch, index, places, recipes, read, render) for way, (read, render) in WAYS.items()},
    )
    yield case("read", {way: partial(_read, files, read) for way, (read, _) in WAYS.items()})
    pictures = {way: _read(files, read) for way, (read, _) in WAYS.items()}
    yield case("draw", {"draw": partial(_draw, pictures["plain"], recipes)})
    drawn = _draw(pictures["plain"], recipes)
    for name, change in _operations().items():
        changed = [[change(p) for p in views] for views in drawn]
        yield case(
            name,
            {way: partial(_render, pictures[way], recipes, changed, render) for way, (_, render) in WAYS.items()},
        )


def _in_one_thread(call: Callable[[], object]) -> Callable[[], object]:
    """As in a loader process."""

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
    """By name: what leaves of a view's parameters the crop and one operation only."""
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


def _draw(pictures: list[Picture], recipes: tuple[ViewRecipe, ...]) -> Parameters:
    return [
        [draw_view(recipe, picture.size, generator(0, 0, number, view)) for view, recipe in enumerate(recipes)]
        for number, picture in enumerate(pictures)
    ]


def _render(
    pictures: list[Picture], recipes: tuple[ViewRecipe, ...], parameters: Parameters, render: Render
) -> list[list[Tensor]]:
    return [
        [render(picture, recipe.size, p) for recipe, p in zip(recipes, views, strict=True)]
        for picture, views in zip(pictures, parameters, strict=True)
    ]


def _views_of_files(files: Sequence[ImageFile], recipes: tuple[ViewRecipe, ...], read: Read, render: Render) -> None:
    for number, file in enumerate(files):
        picture = read(file, 3)
        for view, recipe in enumerate(recipes):
            render(picture, recipe.size, draw_view(recipe, picture.size, generator(0, 0, number, view)))


def _batch(index: ImageIndex, places: np.ndarray, recipes: tuple[ViewRecipe, ...], read: Read, render: Render) -> None:
    """One batch of all the images, stacked."""
    loader = CropLoader(
        index,
        places,
        recipes,
        LoaderConfig(workers=0),
        batch_size=len(places),
        seed=0,
        backend=RenderBackend(read, render),
    )
    for _ in loader.steps(0, 1):
        pass
