"""Stream of training batches: the images and crops that each step sees on each process.

Everything derives from (seed, epoch, sample, view): the stream is the same for any number of workers, is shared out
over any number of processes, and starts at any step without replaying the steps before.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch

from selfpatch.config.sections import LoaderConfig
from selfpatch.core.machine import num_cores
from selfpatch.core.text import counted
from selfpatch.data.augment.backends import BACKENDS, RenderBackend, choose_backend
from selfpatch.data.augment.gpu import DecodingCollator
from selfpatch.data.augment.multicrop import ViewParameters, ViewRecipe, draw_views, generator
from selfpatch.data.batch_size import check_batch_size
from selfpatch.data.collate import Batch, RenderingCollator, stack_boxes
from selfpatch.data.decode.pillow import BadImage, Picture
from selfpatch.data.sources.image_files import ImageFile
from selfpatch.data.sources.index import ImageIndex
from selfpatch.data.sources.read_ahead import read_ahead
from selfpatch.data.workers import AHEAD, SHARED_MEMORY, computed_ahead, free_shared_memory

DrawMask = Callable[[np.random.Generator, tuple[float, float] | None], np.ndarray]
"""Function that draws a mask [h, w] bool of one global crop, given the range of its ratio if a batch decides it."""
DrawRatios = Callable[[int, np.random.Generator], np.ndarray]
"""Function that draws the ranges [n, 2] of the ratios of masks of n crops."""

PART_SIZE = 32
"""Images that a worker hands over at once; whole batches would delay the first step and fill the shared memory."""
MAX_WORKERS = 16
REPLACEMENTS = 20
"""Number of other images that are tried in place of an unreadable one."""
CHECKED_FROM = 100
"""Distinct images that must have been read (or one epoch) before the fraction of unreadable ones is checked."""

# Streams of `generator` next to those of the views, which count from 0.
_REPLACEMENT_STREAM = 2**32
_ORDER_STREAM = 2**32 + 1
_RATIO_STREAM = 2**32 + 2
_MASK_STREAM = 2**33  # plus the number of the view
_PAIR_STREAM = 2**34  # plus the number of the crop

_Request = tuple[int, list[int], np.ndarray | None]
"""Epoch, the indices of the images [n] of a part, and the ranges [G, n, 2] of their ratios of masks."""


@dataclass
class _Part:
    batch: Batch | None = None  # None: too many unreadable images in a row
    tried: list[int] = field(default_factory=list)  # indices of all images that were opened
    bad: dict[str, str] = field(default_factory=dict)  # reason by path


@dataclass(eq=False, repr=False)
class CropLoader:
    """Loader of multi-crop batches; nothing is read before `steps` is iterated.

    An epoch's order is a permutation from (seed, epoch). A step's batch is a slice of it. The micro-batches are slices
    of the batch, in order, and each process takes a slice of each micro-batch, in order of rank. Incomplete ones are
    dropped.

    An unreadable image is replaced by another one, drawn from (seed, epoch, sample) and cropped with the same draws.

    ValueError is raised for a batch that is larger than the data or cannot be shared out, for recipes whose sizes
    differ, and for a renderer that is not installed.
    """

    index: ImageIndex
    indices: np.ndarray
    """[n] images to train on."""
    recipes: Sequence[ViewRecipe]
    """One per view, global views first; all global views have one size, and so have all local ones."""
    config: LoaderConfig
    _: KW_ONLY
    batch_size: int
    """Images per step, over all processes and micro-batches."""
    seed: int
    """Seed of the order and of the crops."""
    num_global: int = 2
    """Number of recipes that are global views."""
    pair_recipes: Sequence[ViewRecipe] = ()
    """One per clean crop, then one per crop inside them; all of either kind have one size."""
    anchor_recipes: Sequence[ViewRecipe] = ()
    """One per global view that is rendered again for an anchor, from the same draws."""
    accumulate: int = 1
    """Micro-batches per step."""
    channels: int = 3
    """Channels of the images, as in `read_picture`."""
    rank: int = 0
    world_size: int = 1
    device_type: str = "cpu"
    """Type of the training device; `cuda` gathers batches in page-locked memory, for asynchronous copies."""
    draw_mask: DrawMask | None = None
    """Draws a mask of a global view (default: no masks)."""
    draw_ratios: DrawRatios | None = None
    """Draws the ranges of ratios for the global views of a micro-batch of all processes (default: each for itself)."""
    backend: RenderBackend | None = None
    """Reader and renderer; defaults to `config.render`."""
    bad: dict[str, str] = field(default_factory=dict, init=False)
    """Reason by path for each unreadable file that this process met."""

    def __post_init__(self) -> None:
        num_images = len(self.indices)
        check_batch_size(self.batch_size, num_images, world_size=self.world_size, accumulate=self.accumulate)
        self.read, render = (
            self.backend
            or BACKENDS[choose_backend(self.config.render, device_type=self.device_type, channels=self.channels)]
        )
        self.collator = (
            RenderingCollator(self.recipes, self.num_global, render, self.pair_recipes, self.anchor_recipes)
            if render is not None
            else DecodingCollator(
                self.recipes, self.num_global, self.config.max_pixels, self.pair_recipes, self.anchor_recipes
            )
        )
        self.indices = np.asarray(self.indices, np.int64)
        self.steps_per_epoch = num_images // self.batch_size
        self._share = self.batch_size // (self.world_size * self.accumulate)  # images of a micro-batch here
        self._order: tuple[int, np.ndarray] | None = None
        self._tried = np.zeros(len(self.index), bool)
        self._steps_given = 0

    def samples(self, step: int) -> np.ndarray:
        """Return the indices [accumulate, B] of the images in this process's micro-batches of a step."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        if self._order is None or self._order[0] != epoch:
            # Sorting draws, not Generator.permutation, whose stream NumPy may change.
            draws = generator(self.seed, epoch, 0, _ORDER_STREAM).random(len(self.indices))
            self._order = epoch, self.indices[np.argsort(draws, kind="stable")]
        samples = self._order[1][batch * self.batch_size : (batch + 1) * self.batch_size]
        return samples.reshape(self.accumulate, self.world_size, -1)[:, self.rank]

    def steps(self, first: int, last: int) -> Iterator[list[Batch]]:
        """Yield the micro-batches of the steps `first`, ..., `last` - 1, which count through the epochs, on the CPU.

        `to(device)` makes Views in uint8 of them. ValueError is raised once more than `max_bad` of the images are
        unreadable, or if no readable replacement is found.
        """
        parts = computed_ahead(
            _Crops(self).load,
            self._requests(first, last),
            self._num_workers(),
            patience=self.config.timeout,
            option="--loader.workers 0 (`resume --workers 0`)",
        )
        with contextlib.closing(parts):
            for _ in range(first, last):
                micro_batches = [self._gather(parts) for _ in range(self.accumulate)]
                self._steps_given += 1
                self._check_bad()
                yield micro_batches

    def _num_workers(self) -> int:
        """Return the number of loader processes; the default one is no larger than the shared memory allows."""
        workers = default_workers() if self.config.workers is None else self.config.workers
        free = free_shared_memory()
        part = min(self._share, PART_SIZE) * self.collator.max_bytes(self.channels)
        if not part or free is None:
            return workers
        fitting = free // (local_processes() * AHEAD * part)
        if fitting >= workers:
            return workers
        chosen = int(fitting) if self.config.workers is None else workers
        warnings.warn(
            f"{SHARED_MEMORY} has {free / 2**20:.3g} MB free, but loader processes hand over up to "
            f"{AHEAD * part / 2**20:.3g} MB each; {chosen} of {workers} are used; allow more shared memory, e.g. with "
            "`docker run --shm-size 8g`, or set --loader.workers",
            stacklevel=2,
        )
        return chosen

    def _requests(self, first: int, last: int) -> Iterator[_Request]:
        for step in range(first, last):
            for number, samples in enumerate(self.samples(step).tolist()):
                ratios = self._mask_ratios(step * self.accumulate + number, step // self.steps_per_epoch)
                for start in range(0, self._share, PART_SIZE):
                    part = slice(start, start + PART_SIZE)
                    of_part = None if ratios is None else ratios[:, part]
                    yield step // self.steps_per_epoch, samples[part], of_part

    def _mask_ratios(self, micro_batch: int, epoch: int) -> np.ndarray | None:
        """Return the ranges [G, B, 2] of this process's part of a micro-batch, counted through the run, if drawn."""
        if self.draw_ratios is None:
            return None
        rng = generator(self.seed, epoch, micro_batch, _RATIO_STREAM)
        drawn = self.draw_ratios(self.num_global * self.world_size * self._share, rng)
        return drawn.reshape(self.num_global, self.world_size, self._share, 2)[:, self.rank]

    def _gather(self, parts: Iterator[_Part]) -> Batch:
        """Join the next parts to one micro-batch."""
        batches = []
        for _ in range(0, self._share, PART_SIZE):
            part = next(parts)
            self._tried[part.tried] = True
            if part.bad:
                self.bad = self.bad | part.bad  # a new one: another thread may be iterating over the old one
            if part.batch is None:
                path, reason = next(reversed(part.bad.items()))
                raise ValueError(
                    f"{1 + REPLACEMENTS} images drawn one after the other are unreadable, e.g. {path}: {reason}; "
                    "give a folder or a list of images that can be read"
                )
            batches.append(part.batch)
        return self.collator.join(batches, pin_memory=self.device_type == "cuda")

    def _check_bad(self) -> None:
        num_tried = int(np.count_nonzero(self._tried)) if self.bad else 0
        enough = num_tried >= CHECKED_FROM or self._steps_given >= self.steps_per_epoch
        if enough and len(self.bad) > self.config.max_bad * num_tried:
            path, reason = next(iter(self.bad.items()))
            raise ValueError(
                f"cannot read {len(self.bad)} of {counted(num_tried, 'image')} so far, more than a share of "
                f"{self.config.max_bad:g}, e.g. {path}: {reason}; remove them, or allow more with --loader.max-bad"
            )


class _Crops:
    """Work of the loader processes: read the images of a request, draw their views and collate them."""

    def __init__(self, loader: CropLoader) -> None:
        self.loader = loader

    def load(self, request: _Request) -> _Part:
        loader, (epoch, samples, ratios) = self.loader, request
        part = _Part()
        used: list[int] = []  # [B] samples or their replacements
        prepared: list[Any] = []
        drawn: list[list[list[ViewParameters]]] = []  # [B], of multi-crop [V], of pairs [P + Q] and for an anchor [G]
        files = read_ahead([loader.index.file(sample) for sample in samples])
        for sample, file in zip(samples, files, strict=True):
            image = self._read(epoch, sample, file, part)
            if image is None:
                return part
            used.append(part.tried[-1])
            parameters = [
                draw_views(recipes, image.size, partial(generator, loader.seed, epoch, sample), first)
                for recipes, first in (
                    (loader.recipes, 0),
                    (loader.pair_recipes, _PAIR_STREAM),
                    (loader.anchor_recipes, 0),  # the streams of the global crops
                )
            ]
            prepared.append(loader.collator.prepare(image, [*chain(*parameters)]))
            drawn.append(parameters)
        masks = None
        if loader.draw_mask is not None:
            streams = range(_MASK_STREAM, _MASK_STREAM + loader.num_global)
            of_views = [[None] * len(samples)] * loader.num_global if ratios is None else ratios.tolist()
            by_view = [
                [loader.draw_mask(generator(loader.seed, epoch, s, view), r) for s, r in zip(samples, of, strict=True)]
                for view, of in zip(streams, of_views, strict=True)
            ]
            masks = torch.from_numpy(np.array(by_view))  # [G, B, h, w]
        boxes, pair_boxes, _ = map(stack_boxes, zip(*drawn, strict=True))
        fields = {"boxes": boxes, "samples": torch.tensor(used), "masks": masks}
        part.batch = loader.collator.collate(prepared, fields | {"pair_boxes": pair_boxes if len(pair_boxes) else None})
        return part

    def _read(self, epoch: int, sample: int, file: ImageFile, part: _Part) -> Picture | None:
        """Read the image of a sample, or a replacement if it is unreadable; return None if those are unreadable too."""
        loader = self.loader
        draws = generator(loader.seed, epoch, sample, _REPLACEMENT_STREAM).random(REPLACEMENTS)
        replacements = loader.indices[(draws * len(loader.indices)).astype(np.int64)]
        for i in [sample, *replacements.tolist()]:
            part.tried.append(i)
            try:
                return loader.read(file if i == sample else loader.index.file(i), loader.channels)
            except BadImage as error:
                part.bad[error.path] = error.reason
        return None


def local_processes() -> int:
    """Return the number of training processes on this machine, which torchrun sets."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def default_workers() -> int:
    """Return one fewer than this process's share of the cores, at most 16."""
    return min(MAX_WORKERS, max(0, num_cores() // local_processes() - 1))
