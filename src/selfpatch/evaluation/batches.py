"""Batches of labelled samples for training in an evaluation, the same for any number of workers and after a stop."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from torch.utils.data import default_collate

from selfpatch.core.text import counted
from selfpatch.data.augment.multicrop import generator
from selfpatch.data.workers import computed_ahead
from selfpatch.evaluation.config import EvaluationConfig
from selfpatch.evaluation.sharding import share_of_batch

_ORDER_STREAM = 2**32 + 1


class Batches:
    """Shuffled batches of a training set; the incomplete last batch of an epoch is dropped.

    Each of several processes loads its part of every batch.

    Args:
        num_samples: size of the set.
        load: function of the sample's index and its random generator that returns the sample. The generator is a
            function of (seed, epoch, sample), so that augmentation does not depend on workers or stops.
        batch_size: samples per step, on all processes together.
        seed: seed of order and augmentation.
        workers: number of loader processes; 0 loads in this process.
        repeats: copies of each sample in a batch, each with its own random numbers (repeated augmentation, arXiv
            1901.09335, as in DeiT); an epoch has as many steps as without, so that it sees 1/repeats of the samples.
        collate: function that makes a batch of a list of samples; defaults to torch's.

    Raises:
        ValueError: the batch is larger than the set, the number of processes does not divide it, or `workers` is
            negative.
    """

    def __init__(
        self,
        num_samples: int,
        load: Callable[[int, np.random.Generator], Any],
        *,
        batch_size: int,
        seed: int,
        workers: int = 0,
        repeats: int = 1,
        collate: Callable[[list[Any]], Any] = default_collate,
    ) -> None:
        if not 1 <= batch_size <= num_samples:
            raise ValueError(
                f"a batch of {batch_size} cannot be drawn from {counted(num_samples, 'training sample')}; use a batch "
                f"of 1 to {num_samples}"
            )
        if workers < 0:
            raise ValueError(f"workers is {workers}; use 0 or more")
        self._load, self._collate, self._seed, self._workers = load, collate, seed, workers
        self.num_samples, self._batch_size, self._repeats = num_samples, batch_size, repeats
        self._share = share_of_batch(batch_size)
        self.steps_per_epoch = num_samples // batch_size

    def steps(self, first: int, last: int) -> Iterator[Any]:
        """Yield the batches of the steps `first`, ..., `last` - 1; steps count through the epochs.

        Raises:
            ValueError: a sample cannot be loaded.
            LoaderError: a loader process fails or hangs.
        """
        return computed_ahead(self._load_batch, self._requests(first, last), self._workers)

    def _requests(self, first: int, last: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """Yield (epoch, [(sample, copy), ...]) of each step.

        Copies of a sample stand apart in the batch, because mixup mixes neighbours.
        """
        for epoch, batches in epochs_of(first, last, self.steps_per_epoch):
            order = np.argsort(generator(self._seed, epoch, 0, _ORDER_STREAM).random(self.num_samples), kind="stable")
            for batch in batches:
                rows = range(batch * self._batch_size, (batch + 1) * self._batch_size)
                copies = [(int(order[row // self._repeats]), row % self._repeats) for row in rows]
                yield epoch, sorted(copies, key=lambda pair: pair[1])[self._share]

    def _load_batch(self, request: tuple[int, list[tuple[int, int]]]) -> Any:
        epoch, copies = request
        return self._collate([self._load(i, generator(self._seed, epoch, i, copy)) for i, copy in copies])


def capped_batch_note(config: EvaluationConfig, settings: Mapping[str, Any]) -> list[str]:
    """Return the note of a result that its training had fewer images than a batch; it is empty where it had enough.

    `config` holds the settings that were asked for, `settings` those that the evaluation used.
    """
    asked = getattr(config, "batch_size", None)
    if asked is None or asked == settings["batch_size"]:
        return []
    return [f"A batch has {counted(settings['batch_size'], 'image')}, all that there are to train on, and not {asked}."]


def epochs_of(first: int, last: int, steps_per_epoch: int) -> Iterator[tuple[int, range]]:
    """Yield each epoch of the steps `first`, ..., `last` - 1, and which of its batches are among them."""
    for epoch in range(first // steps_per_epoch, -(-last // steps_per_epoch)):
        start = epoch * steps_per_epoch
        yield epoch, range(max(first - start, 0), min(last - start, steps_per_epoch))
