"""The images of a run: training images, held-out images, and whether they are still the same on resume."""

import json
from dataclasses import dataclass

import numpy as np
from typing_extensions import TypedDict

from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.json_schema import check_json
from selfpatch.core.atomic_io import write_atomically
from selfpatch.core.text import shell
from selfpatch.core.text_files import read_json
from selfpatch.data.sources.index import ImageIndex
from selfpatch.data.statistics import ChannelStatistics, channel_statistics


class DataRecord(TypedDict):
    """Content of `data.json`."""

    images: int
    fingerprint: str


@dataclass(frozen=True)
class TrainingData:
    """The images of a run."""

    index: ImageIndex
    """All images of the source."""
    indices: np.ndarray
    """[n] indices in `index` of the training images."""
    held_out_index: ImageIndex
    held_out_indices: np.ndarray
    """[m] indices in `held_out_index` of the images for online evaluation."""


def measure_channels(data: TrainingData, channels: int) -> ChannelStatistics | None:
    """Return mean and standard deviation of each channel, or None for RGB, which the model normalises itself.

    Raises:
        ValueError: none of the images can be read.
    """
    return None if channels == 3 else channel_statistics(data.index, data.indices, channels)


def check_data(run: RunDirectory, data: TrainingData) -> None:
    """Raise ValueError if the images are no longer those that the run began with."""
    record = run.path / "data.json"
    if not record.is_file():  # the run was killed before it was written
        record_data(run, data)
    try:
        begun_with = check_json(read_json(record), DataRecord, str(record))
    except ValueError as error:
        raise ValueError(f"the record of the run's images is damaged: {error}; remove it to trust the images") from None
    if begun_with["fingerprint"] != data.index.fingerprint:
        raise ValueError(
            f"the images in {run.settings.get('data')} are no longer those that {run.path} was begun with "
            f"({begun_with['images']} then, {len(data.index)} now); "
            f"put them back, or begin a new run from its weights with {shell('--init', run.path)}"
        )


def record_data(run: RunDirectory, data: TrainingData) -> None:
    """Write `data.json`, which identifies the images of the run."""
    record = {"source": run.settings.get("data"), "images": len(data.index), "fingerprint": data.index.fingerprint}
    write_atomically(run.path / "data.json", json.dumps(record, indent=1) + "\n")
