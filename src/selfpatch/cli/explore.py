"""`selfpatch explore`: write a page that compares patches in a browser."""

from typing import Annotated

import tyro

from selfpatch.checkpoints.config import LoadConfig
from selfpatch.cli.parsing import DeviceOptions, Flat, read_options
from selfpatch.config.schema import DataName, Name, plain, settings
from selfpatch.core.text import visible
from selfpatch.visualization.explorer.config import ExploreConfig


@settings
class ExploreOptions(DeviceOptions):
    """Write one HTML file in which a click on a patch shows the similar patches of all images, for one network or two.

    A run directory in place of images stands for its held-out images. Without --weights, the run's first checkpoint,
    or the untrained network if that is gone, stands next to its last one.
    """

    images: tyro.conf.Positional[tuple[DataName, ...]]
    """Image files, or one run directory."""
    weights: tyro.conf.UseAppendAction[tuple[Name, ...]] = ()
    """Weights as `selfpatch show` takes them; give the option twice to compare two networks side by side."""
    load: Annotated[LoadConfig, Flat] = LoadConfig()
    out: Name = "explore.html"
    """HTML file to write."""
    config: Annotated[ExploreConfig, Flat] = ExploreConfig()


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    options = read_options(ExploreOptions, "explore", arguments)
    if not options.images:
        raise ValueError("no image was named; give one or more files, or a run directory")
    images = options.images[0] if len(options.images) == 1 else options.images
    from selfpatch.api.explore import explore

    page = explore(
        options.weights or None, images, options.out, options.config,
        device=options.device, load_options=plain(options.load),
    )  # fmt: skip
    print(visible(str(page)))
    return 0
