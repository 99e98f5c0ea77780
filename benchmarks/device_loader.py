"""The training loader where the device renders: what is left for a loader process, and all from files to views."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import Case
from selfpatch.config.sections import CropConfig, LoaderConfig
from selfpatch.core.types import Views
from selfpatch.data.augment.backends import Name
from selfpatch.data.augment.multicrop import ViewRecipe, dino_views
from selfpatch.data.collate import Batch
from selfpatch.data.loader import CropLoader
from selfpatch.data.sample_images import sample_photographs
from selfpatch.data.sources.index import ImageIndex

BATCHES = {"cpu": 16, "cuda": 128}
"""Images of a batch by type of device."""
WAYS: tuple[Name, ...] = ("plain", "device")


def cases(device: torch.device, folder: Path | None = None) -> Iterator[Case]:
    """DINO's ten views of photographs in a folder; None: of the built-in samples. On a processor the batched renderer
    is there to be tested, not to be fast."""
    index = ImageIndex.open(sample_photographs() / "training" if folder is None else folder)
    count = min(BATCHES.get(device.type, 16), len(index))
    places = np.unique(np.linspace(0, len(index) - 1, count).astype(int))
    recipes = dino_views(CropConfig())

    load = partial(_load, index, places, recipes)
    yield Case("what a loader process does", {way: partial(load, way) for way in WAYS}, len(places))
    ways: dict[str, Callable[[], object]] = {way: partial(_files_to_views, load, way, device) for way in WAYS}
    yield Case(f"files to views on {device.type}, one process", ways, len(places))


def _load(index: ImageIndex, places: np.ndarray, recipes: tuple[ViewRecipe, ...], renderer: Name) -> Batch:
    """One batch of all the images, in this process."""
    loader = CropLoader(
        index, places, recipes, LoaderConfig(workers=0, max_pixels=0, render=renderer), batch_size=len(places), seed=0
    )
    ((batch,),) = loader.steps(0, 1)
    return batch


def _files_to_views(load: Callable[[Name], Batch], renderer: Name, device: torch.device) -> Views:
    return load(renderer).to(device)
