"""Stream of training batches: the images and crops that each step sees on each process.

Everything derives from (seed, epoch, sample, view): the stream is the same for any number of workers, is shared out
over any number of processes, and starts at any step without replaying the steps before.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from selfpatch.config.sections import LoaderConfig
from selfpatch.core.machine import num_cores
from selfpatch.data.augment.backends import BACKENDS, RenderBackend, choose_backend
from selfpatch.data.augment.gpu import DecodingCollator
from selfpatch.data.augment.multicrop import ViewParameters, ViewRecipe, draw_view, generator
from selfpatch.data.collate import Batch, RenderingCollator, stack_boxes
from selfpatch.data.decode.pillow import BadImage, Picture, Read
from selfpatch.data.sources.index import ImageIndex

Collator = RenderingCollator | DecodingCollator
DrawMask = Callable[[np.random.Generator], np.ndarray]
"""Function that draws a mask [h, w] bool of one global crop."""

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
_MASK_STREAM = 2**33  # plus the number of the view


class _Request(NamedTuple):
    epoch: int
    samples: np.ndarray  # [images] indices


class _Part(NamedTuple):
    batch: Batch | None  # None: too many unreadable images in a row
    tried: list[int]  # indices of all images that were opened
    bad: dict[str, str]  # reason by path


class CropLoader:
    """Loader of multi-crop batches.

    An epoch's order is a permutation from (seed, epoch). A step's batch is a slice of it. The micro-batches are slices
    of the batch, in order, and each process takes a slice of each micro-batch, in order of rank. The tail of an epoch
    that fills no batch is dropped.

    An unreadable image is replaced by another one, drawn from (seed, epoch, sample) and cropped with the random numbers
    of the sample that it replaces.

    Attributes:
        batch_size: images per step, over all processes.
        bad: reason by path for each unreadable file that this process met.
        steps_per_epoch: number of whole batches in an epoch.
    """

    def __init__(
        self,
        index: ImageIndex,
        indices: np.ndarray,
        recipes: Sequence[ViewRecipe],
        config: LoaderConfig,
        *,
        batch_size: int,
        seed: int,
        num_global: int = 2,
        accumulate: int = 1,
        channels: int = 3,
        rank: int = 0,
        world_size: int = 1,
        device_type: str = "cpu",
        draw_mask: DrawMask | None = None,
        backend: RenderBackend | None = None,
    ) -> None:
        """Prepare a stream; nothing is read yet.

        Args:
            index: the images.
            indices: [n] images to train on.
            recipes: one per view, global views first; all global views have one size, and so have all local ones.
            config: workers, renderer and tolerance of unreadable images.
            batch_size: images per step, over all processes and micro-batches.
            seed: seed of the order and of the crops.
            num_global: number of recipes that are global views.
            accumulate: micro-batches per step.
            channels: channels of the images, as in `read_picture`.
            rank: rank of this process.
            world_size: number of training processes.
            device_type: type of the training device. For `cuda`, batches are gathered in page-locked memory, so that
                copies overlap with computing.
            draw_mask: draws a mask of a global view (default: no masks).
            backend: reader and renderer (default: those of `config.render`).

        Raises:
            ValueError: the batch is larger than the data or cannot be shared out, the recipes' sizes differ, or the
                renderer is not installed.
        """
        shares = world_size * accumulate
        if batch_size < 1 or batch_size % shares:
            raise ValueError(
                f"a batch of {batch_size} images cannot be shared out over {world_size} processes x {accumulate} "
                f"micro-batches; use a multiple of {shares}"
            )
        if batch_size > len(indices):
            largest = len(indices) // shares * shares
            advice = f"use --batch-size {largest} or less, or more images" if largest else "use more images"
            raise ValueError(f"a batch of {batch_size} images is larger than the data, {len(indices)} images; {advice}")
        _check_recipes(recipes, num_global)
        read, render = backend or BACKENDS[choose_backend(config.render, device_type=device_type, channels=channels)]
        self._collator: Collator = (
            DecodingCollator(recipes, num_global, config.max_pixels)
            if render is None
            else RenderingCollator(recipes, num_global, render)
        )
        self._indices = np.asarray(indices, np.int64)
        self._crops = _Crops(index, self._indices, recipes, num_global, channels, seed, draw_mask, read, self._collator)
        self._config = config
        self._share = batch_size // shares  # images of one micro-batch on this process
        self._accumulate = accumulate
        self._seed = seed
        self._rank, self._world_size = rank, world_size
        self._pin_memory = device_type == "cuda"
        self._order: tuple[int, np.ndarray] | None = None
        self._tried = np.zeros(len(index), bool)
        self._steps_given = 0
        self.batch_size = batch_size
        self.bad: dict[str, str] = {}
        self.steps_per_epoch = len(indices) // batch_size

    def samples(self, step: int) -> np.ndarray:
        """Return the indices [accumulate, B] of the images in this process's micro-batches of a step."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        samples = self._epoch_order(epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]
        return samples.reshape(self._accumulate, self._world_size, -1)[:, self._rank]

    def steps(self, first: int, last: int) -> Iterator[list[Batch]]:
        """Load the batches of the steps `first`, ..., `last` - 1, which count through the epochs.

        Yields:
            The micro-batches of each step, `accumulate` of them, on the CPU; `to(device)` gives Views in uint8.

        Raises:
            ValueError: more than `max_bad` of the images are unreadable, or no readable replacement was found.
        """
        loader = DataLoader(
            self._crops,
            batch_size=None,  # one request is one part already
            sampler=self._requests(first, last),
            num_workers=default_workers() if self._config.workers is None else self._config.workers,
            collate_fn=_unchanged,
            worker_init_fn=_leave_signals_to_the_trainer,
            generator=torch.Generator(),  # otherwise it would draw from, and change, the training's random state
        )
        parts = iter(loader)
        for _ in range(first, last):
            micro_batches = [self._gather(parts) for _ in range(self._accumulate)]
            self._steps_given += 1
            self._check_bad()
            yield micro_batches

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            # Sorting draws, not Generator.permutation, whose stream NumPy may change.
            draws = generator(self._seed, epoch, 0, _ORDER_STREAM).random(len(self._indices))
            self._order = epoch, self._indices[np.argsort(draws, kind="stable")]
        return self._order[1]

    def _requests(self, first: int, last: int) -> Iterator[_Request]:
        for step in range(first, last):
            for samples in self.samples(step):
                for start in range(0, self._share, PART_SIZE):
                    yield _Request(step // self.steps_per_epoch, samples[start : start + PART_SIZE])

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
        return self._collator.join(batches, self._pin_memory)

    def _check_bad(self) -> None:
        num_tried = int(np.count_nonzero(self._tried)) if self.bad else 0
        enough = num_tried >= CHECKED_FROM or self._steps_given >= self.steps_per_epoch
        if enough and len(self.bad) > self._config.max_bad * num_tried:
            path, reason = next(iter(self.bad.items()))
            raise ValueError(
                f"{len(self.bad)} of the {num_tried} images read so far are unreadable, more than a share of "
                f"{self._config.max_bad:g}, e.g. {path}: {reason}; remove them, or allow more with --loader.max-bad"
            )


@dataclass(eq=False)
class _Crops(Dataset[_Part]):
    """Data set that runs in the workers: reads the images of a request, draws their views and collates them."""

    index: ImageIndex
    indices: np.ndarray
    recipes: Sequence[ViewRecipe]
    num_global: int
    channels: int
    seed: int
    draw_mask: DrawMask | None
    read: Read
    collator: Collator

    def __getitem__(self, request: _Request) -> _Part:
        tried: list[int] = []
        bad: dict[str, str] = {}
        prepared: list[Any] = []
        drawn: list[list[ViewParameters]] = []  # [B][V]
        samples: list[int] = []  # [B] the images that were read, replacements included
        for sample in request.samples.tolist():
            image = self._read(request.epoch, sample, tried, bad)
            if image is None:
                return _Part(None, tried, bad)
            samples.append(tried[-1])
            parameters = [
                draw_view(recipe, image.size, generator(self.seed, request.epoch, sample, view))
                for view, recipe in enumerate(self.recipes)
            ]
            prepared.append(self.collator.prepare(image, parameters))
            drawn.append(parameters)
        masks = None if self.draw_mask is None else self._masks(request, self.draw_mask)
        batch = self.collator.collate(prepared, stack_boxes(drawn), torch.tensor(samples, dtype=torch.int64), masks)
        return _Part(batch, tried, bad)

    def _masks(self, request: _Request, draw_mask: DrawMask) -> Tensor:
        """Draw the masks [G, B, h, w] of a request."""
        drawn = [
            [
                draw_mask(generator(self.seed, request.epoch, sample, _MASK_STREAM + view))
                for sample in request.samples.tolist()
            ]
            for view in range(self.num_global)
        ]
        return torch.from_numpy(np.array(drawn))

    def _read(self, epoch: int, sample: int, tried: list[int], bad: dict[str, str]) -> Picture | None:
        """Read the image of a sample, or a replacement if it is unreadable; return None if those are unreadable too."""
        draws = generator(self.seed, epoch, sample, _REPLACEMENT_STREAM).random(REPLACEMENTS)
        for i in [sample, *self.indices[(draws * len(self.indices)).astype(np.int64)].tolist()]:
            tried.append(i)
            try:
                return self.read(self.index.file(i), self.channels)
            except BadImage as error:
                bad[error.path] = error.reason
        return None


def _check_recipes(recipes: Sequence[ViewRecipe], num_global: int) -> None:
    sizes = [recipe.size for recipe in recipes]
    if not 1 <= num_global <= len(recipes):
        raise ValueError(f"num_global is {num_global}, but there are {len(recipes)} recipes; use 1 to {len(recipes)}")
    for name, group in [("global", sizes[:num_global]), ("local", sizes[num_global:])]:
        if len(set(group)) > 1:
            raise ValueError(f"{name} views of sizes {group} do not fit into one batch; give them one size")


def default_workers() -> int:
    """Return one fewer than this process's share of the cores, at most 16."""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # number on this machine, set by torchrun
    return min(MAX_WORKERS, max(0, num_cores() // processes - 1))


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM, which reach every process of a job: the trainer needs batches until it has saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _unchanged(part: Any) -> Any:
    return part
