"""Images per second that the training loader reads from several sources of the same images.

`python -m benchmarks.sources PHOTOS SHARDS` compares a folder with what `selfpatch prepare` made of it, on one core.
Sources may be URLs. They take turns; each round reads other images, and nothing is cached by this program.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from statistics import median
from typing import Annotated

import numpy as np
import torch
import tyro
from annotated_types import MinLen
from pydantic import PositiveInt

from benchmarks.report import describe_machine
from selfpatch.config.schema import Workers, settings
from selfpatch.config.sections import CropConfig, LoaderConfig
from selfpatch.core.console import console
from selfpatch.core.disk_cache import SIZE_VARIABLE
from selfpatch.data.augment.multicrop import dino_views
from selfpatch.data.loader import CropLoader
from selfpatch.data.sources.index import ImageIndex


@settings
class SourcesConfig:
    """Compare sources of images by the rate of the training loader."""

    sources: tyro.conf.Positional[Annotated[tuple[str, ...], MinLen(2)]]
    """Sources as --data takes them; the first one is what the others are compared with."""
    workers: Workers = 0
    """Number of loader processes; 0 reads in this process, on one core."""
    batch_size: PositiveInt = 32
    """Number of images in a batch."""
    batches: PositiveInt = 2
    """Number of batches that are timed in a round, after the first one."""
    rounds: PositiveInt = 5
    """Number of rounds."""
    device_renders: bool = False
    """Decode only, as where a GPU renders the views."""


def rates(config: SourcesConfig) -> Iterator[list[tuple[float, float]]]:
    """Yield for each round the images per second of wall time, and of CPU time of this process, of each source."""
    indices = [ImageIndex.open(source) for source in config.sources]
    loader_config = LoaderConfig(workers=config.workers, render="device" if config.device_renders else "auto")
    for seed in range(config.rounds):
        found = []
        for index in indices:
            loader = CropLoader(
                index, np.arange(len(index)), dino_views(CropConfig()), loader_config,
                batch_size=config.batch_size, seed=seed,
            )  # fmt: skip
            steps = loader.steps(0, 1 + config.batches)
            next(steps)
            wall, cpu = time.perf_counter(), time.process_time()
            images = sum(config.batch_size for _ in steps)
            found.append((images / (time.perf_counter() - wall), images / max(time.process_time() - cpu, 1e-9)))
        yield found


def main() -> None:
    """Run the comparison with the options of the command line."""
    config = tyro.cli(SourcesConfig, description=__doc__)
    os.environ[SIZE_VARIABLE] = "0"
    torch.set_num_threads(1)
    console.print(describe_machine(torch.device("cpu")))
    rounds = list(rates(config))
    for number, source in enumerate(config.sources):
        wall, cpu = (median(found[number][kind] for found in rounds) for kind in (0, 1))
        ratios = [median(found[number][kind] / found[0][kind] for found in rounds) for kind in (0, 1)]
        of_cpu = f", {cpu:.1f} a CPU second ({ratios[1]:.2f} times the first)" if not config.workers else ""
        console.print(f"{source}: {wall:.1f} images/s ({ratios[0]:.2f} times the first){of_cpu}")


if __name__ == "__main__":
    main()
