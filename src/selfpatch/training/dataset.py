"""The images of a run: where they are, which are held out, what suits so many, whether they are still the same."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np

from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.recipes import choose_recipe, load_recipe
from selfpatch.config.run import SAMPLES, RunConfig
from selfpatch.core.atomic_io import write_atomically
from selfpatch.data.sample_images import sample_photographs
from selfpatch.data.sources.index import ImageIndex
from selfpatch.data.statistics import ChannelStatistics, channel_statistics


@dataclass(frozen=True)
class TrainingData:
    """The images of a run: those it trains on, and those it is measured on."""

    index: ImageIndex
    indices: np.ndarray
    held_out_index: ImageIndex
    held_out: np.ndarray


def open_data(config: RunConfig) -> TrainingData:
    """Finds the images of a configuration.

    Raises:
        ValueError: there are none, or a shard is damaged.
    """
    if config.data == SAMPLES:
        folder = sample_photographs()
        index, held_out_index = ImageIndex.open(folder / "training"), ImageIndex.open(folder / "held_out")
        return TrainingData(index, np.arange(len(index)), held_out_index, np.arange(len(held_out_index)))
    index = ImageIndex.open(config.data)
    indices, held_out = index.split(config.loader.held_out, config.seed)
    return TrainingData(index, indices, index, held_out)


def measure_channels(config: RunConfig, data: TrainingData) -> ChannelStatistics | None:
    """What the images are normalised with; None: of red, green and blue, as the model expects.

    Raises:
        ValueError: none of the images can be read.
    """
    return None if config.channels == 3 else channel_statistics(data.index, data.indices, config.channels)


def recipe_for(data: str) -> RunConfig:
    """The recipe that suits the number of images, with a batch that they fill at least eight times where they can.

    Raises:
        ValueError: there are no images.
    """
    if data == SAMPLES:
        return load_recipe(SAMPLES)
    count = len(ImageIndex.open(data))
    recipe = load_recipe(choose_recipe(count, data))
    largest = 1 << max(0, (count // 8).bit_length() - 1)  # a power of two
    return replace(recipe, batch_size=min(recipe.batch_size, largest))


def check_data(run: RunDirectory, data: TrainingData) -> None:
    """Refuses to go on with other images than the run was begun with."""
    record = run.path / "data.json"
    if not record.is_file():  # killed between the first two files
        record_data(run, data)
    begun_with = json.loads(record.read_text())
    if begun_with["fingerprint"] != data.index.fingerprint:
        raise ValueError(
            f"the images in {run.settings['data']} are no longer those that {run.path} was begun with "
            f"({begun_with['images']} then, {len(data.index)} now); "
            f"put them back, or begin a new run from its weights with --init {run.path}"
        )


def record_data(run: RunDirectory, data: TrainingData) -> None:
    record = {"source": run.settings["data"], "images": len(data.index), "fingerprint": data.index.fingerprint}
    write_atomically(run.path / "data.json", json.dumps(record, indent=1) + "\n")
