"""The training stream: which images and which crops each step sees, on each process.

Everything derives from (seed, epoch, sample, view), so the stream is the same for any number of workers, is shared out
over any number of processes, and starts at any step without replaying what came before.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from selfpatch.data.augment.masks import MaskRecipe, draw_mask
from selfpatch.data.augment.multicrop import ViewParameters, ViewRecipe, draw_view, generator
from selfpatch.data.augment.pillow import render as render_plain
from selfpatch.data.collate import Batch, Batching, Render, RenderedBatches
from selfpatch.data.decode.pillow import BadImage, Picture, read_picture
from selfpatch.data.decoded_batches import DecodedBatches
from selfpatch.data.sources.image_files import ImageFile
from selfpatch.data.sources.index import ImageIndex

Read = Callable[[ImageFile, int], Picture]
"""(file, number of channels) -> upright image, or BadImage."""

PART_SIZE = 32
"""Images that a worker hands over at once; whole batches would hold up the first step and fill the shared memory."""
MAX_WORKERS = 16
REPLACEMENTS = 20
"""Other images that are tried in place of an unreadable one."""
JUDGED_FROM = 100
"""Distinct images that must have been read (or one epoch) before the share of unreadable ones is judged."""

# Streams of `generator` beside those of the views, which count from 0.
_REPLACEMENT_STREAM = 2**32
_ORDER_STREAM = 2**32 + 1
_MASK_STREAM = 2**33  # plus the number of the view


class _Request(NamedTuple):
    epoch: int
    samples: np.ndarray  # [images] places


class _Part(NamedTuple):
    batch: Batch | None  # None: too many unreadable images in a row
    tried: list[int]  # places of all images that were opened
    bad: dict[str, str]  # reason by path


class CropLoader:
    """Multi-crop batches of an index.

    An epoch's order is a permutation from (seed, epoch). A step's batch is a slice of it; its micro-batches are slices
    of the batch, in order, and each process takes a slice of each micro-batch, in order of rank. The tail of an epoch
    that fills no batch is dropped.

    An unreadable image is replaced by another one, which is drawn from (seed, epoch, sample) too and cropped with the
    random numbers of the sample that it stands in for.

    Attributes:
        batch_size: images a step, over all processes.
        bad: why each unreadable file that this process met was unreadable, by path.
        steps_per_epoch: whole batches in an epoch.
    """

    def __init__(
        self,
        index: ImageIndex,
        places: np.ndarray,
        recipes: Sequence[ViewRecipe],
        *,
        num_global: int = 2,
        batch_size: int,
        accumulate: int = 1,
        channels: int = 3,
        seed: int,
        workers: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        max_bad: float = 0.01,
        pin_memory: bool = False,
        masks: MaskRecipe | None = None,
        read: Read = read_picture,
        render: Render | None = render_plain,
        max_pixels: int = 0,
    ) -> None:
        """
        Args:
            index: the images.
            places: [n] those to train on.
            recipes: one a view, global views first; all global views are of one size, and so are all local ones.
            num_global: how many of the recipes are global views.
            batch_size: images a step, over all processes and micro-batches.
            accumulate: micro-batches a step.
            channels: of the images, as `read_picture` takes them.
            seed: of order and crops.
            workers: loader processes; None: `default_workers()`; 0: all in this process. Does not change the stream.
            rank: this process's number.
            world_size: number of training processes.
            max_bad: largest share of unreadable images, of the distinct ones that were read.
            pin_memory: gather batches in page-locked memory, so that copies to a CUDA device overlap with computing.
            masks: how masks of the global views are drawn; None: there are none.
            read: reads an image.
            render: turns an image and drawn parameters into pixels; None: leaves that to the device. Batches are then
                `decoded.DecodedBatch`es.
            max_pixels: larger images are shrunk to so many before they go to a device that renders; 0: none is.

        Raises:
            ValueError: the batch is larger than the data or cannot be shared out, or the recipes' sizes differ.
        """
        shares = world_size * accumulate
        if batch_size < 1 or batch_size % shares:
            raise ValueError(
                f"a batch of {batch_size} images cannot be shared out over {world_size} processes x {accumulate} "
                f"micro-batches; use a multiple of {shares}"
            )
        if batch_size > len(places):
            largest = len(places) // shares * shares
            advice = f"use --batch-size {largest} or less, or more images" if largest else "use more images"
            raise ValueError(f"a batch of {batch_size} images is larger than the data, {len(places)} images; {advice}")
        self._places = np.asarray(places, np.int64)
        _check_recipes(recipes, num_global)
        self._batching: Batching = (
            DecodedBatches(recipes, num_global, max_pixels)
            if render is None
            else RenderedBatches(recipes, num_global, render)
        )
        self._crops = _Crops(index, self._places, recipes, num_global, channels, seed, masks, read, self._batching)
        self.batch_size = batch_size
        self._share = batch_size // shares  # images of one micro-batch on this process
        self._accumulate = accumulate
        self._seed = seed
        self._workers = default_workers() if workers is None else workers
        self._rank = rank
        self._world_size = world_size
        self._max_bad = max_bad
        self._pin_memory = pin_memory
        self._order: tuple[int, np.ndarray] | None = None
        self._tried = np.zeros(len(index), bool)
        self._steps_given = 0
        self.bad: dict[str, str] = {}
        self.steps_per_epoch = len(places) // batch_size

    def samples(self, step: int) -> np.ndarray:
        """[accumulate, B] the places that this process's micro-batches of a step are made of."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        samples = self._epoch_order(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]
        return samples.reshape(self._accumulate, self._world_size, -1)[:, self._rank]

    def steps(self, first: int, last: int) -> Iterator[list[Batch]]:
        """What this process trains on in the steps `first`, ..., `last` - 1; steps count through the epochs.

        Yields:
            For each step its micro-batches: `accumulate` of them, on the CPU, whose `to(device)` gives Views in uint8.

        Raises:
            ValueError: more than `max_bad` of the images are unreadable, or no readable one was found in place of one.
        """
        loader = DataLoader(
            self._crops,
            batch_size=None,  # one request is one part already
            sampler=self._requests(first, last),
            num_workers=self._workers,
            collate_fn=_unchanged,
            worker_init_fn=_leave_signals_to_the_trainer,
            generator=torch.Generator(),  # or else it would draw from, and so change, the random state of the training
        )
        parts = iter(loader)
        for _ in range(first, last):
            micro_batches = [self._gather(parts) for _ in range(self._accumulate)]
            self._steps_given += 1
            self._judge()
            yield micro_batches

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            # Sorting draws, not Generator.permutation, whose stream NumPy may change.
            draws = generator(self._seed, epoch, 0, _ORDER_STREAM).random(len(self._places))
            self._order = epoch, self._places[np.argsort(draws, kind="stable")]
        return self._order[1]

    def _requests(self, first: int, last: int) -> Iterator[_Request]:
        for step in range(first, last):
            for samples in self.samples(step):
                for start in range(0, self._share, PART_SIZE):
                    yield _Request(step // self.steps_per_epoch, samples[start : start + PART_SIZE])

    def _gather(self, parts: Iterator[_Part]) -> Batch:
        """One micro-batch from the next parts."""
        batches = []
        for _ in range(0, self._share, PART_SIZE):
            part = next(parts)
            self._tried[part.tried] = True
            if part.bad:
                self.bad = self.bad | part.bad  # a new one, for the training may be going through the old one just now
            if part.batch is None:
                path, reason = next(reversed(part.bad.items()))
                raise ValueError(
                    f"{1 + REPLACEMENTS} images drawn one after the other are unreadable, e.g. {path}: {reason}; "
                    "give a folder or a list of images that can be read"
                )
            batches.append(part.batch)
        return self._batching.join(batches, self._pin_memory)

    def _judge(self) -> None:
        distinct = int(np.count_nonzero(self._tried)) if self.bad else 0
        judged = distinct >= JUDGED_FROM or self._steps_given >= self.steps_per_epoch
        if judged and len(self.bad) > self._max_bad * distinct:
            path, reason = next(iter(self.bad.items()))
            raise ValueError(
                f"{len(self.bad)} of the {distinct} images read so far are unreadable, more than a share of "
                f"{self._max_bad:g}, e.g. {path}: {reason}; remove them, or allow more with --loader.max-bad"
            )


class _Crops(Dataset[_Part]):
    """What runs in the workers: reads the images of a request, draws their views and makes a part of a batch."""

    def __init__(
        self,
        index: ImageIndex,
        places: np.ndarray,
        recipes: Sequence[ViewRecipe],
        num_global: int,
        channels: int,
        seed: int,
        masks: MaskRecipe | None,
        read: Read,
        batching: Batching,
    ) -> None:
        self._index, self._places, self._recipes = index, places, recipes
        self._num_global, self._channels = num_global, channels
        self._seed, self._masks, self._open, self._batching = seed, masks, read, batching

    def __getitem__(self, request: _Request) -> _Part:
        tried: list[int] = []
        bad: dict[str, str] = {}
        prepared: list[Any] = []
        drawn: list[list[ViewParameters]] = []  # [B][V]
        samples: list[int] = []  # [B] those that were read, replacements included
        for sample in request.samples.tolist():
            image = self._read(request.epoch, sample, tried, bad)
            if image is None:
                return _Part(None, tried, bad)
            samples.append(tried[-1])
            parameters = [
                draw_view(recipe, image.size, generator(self._seed, request.epoch, sample, view))
                for view, recipe in enumerate(self._recipes)
            ]
            prepared.append(self._batching.prepare(image, parameters))
            drawn.append(parameters)
        return _Part(self._batching.part(prepared, drawn, samples, self._draw_masks(request)), tried, bad)

    def _draw_masks(self, request: _Request) -> Tensor | None:
        """[G, B, h, w], or None where there are none."""
        if self._masks is None:
            return None
        drawn = [
            [
                draw_mask(self._masks, generator(self._seed, request.epoch, sample, _MASK_STREAM + view))
                for sample in request.samples.tolist()
            ]
            for view in range(self._num_global)
        ]
        return torch.from_numpy(np.array(drawn))

    def _read(self, epoch: int, sample: int, tried: list[int], bad: dict[str, str]) -> Picture | None:
        """The image of a sample, or another one if it is unreadable; None if those are unreadable too."""
        draws = generator(self._seed, epoch, sample, _REPLACEMENT_STREAM).random(REPLACEMENTS)
        for place in [sample, *self._places[(draws * len(self._places)).astype(np.int64)].tolist()]:
            tried.append(place)
            try:
                return self._open(self._index.file(place), self._channels)
            except BadImage as error:
                bad[error.path] = error.reason
        return None


def _check_recipes(recipes: Sequence[ViewRecipe], num_global: int) -> None:
    sizes = [recipe.size for recipe in recipes]
    if not 1 <= num_global <= len(recipes):
        raise ValueError(f"{num_global} global views were asked of {len(recipes)} recipes; use 1 to {len(recipes)}")
    for kind, group in [("global", sizes[:num_global]), ("local", sizes[num_global:])]:
        if len(set(group)) > 1:
            raise ValueError(f"{kind} views of sizes {group} do not fit into one batch; give them one size")


def default_workers() -> int:
    """One fewer than this process's share of the cores it may use, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # on this machine, as torchrun says
    return min(MAX_WORKERS, max(0, cores // processes - 1))


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C, and a scheduler's SIGTERM, go to every process of a job; the trainer needs its batches until it has
    saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _unchanged(part: Any) -> Any:
    return part
