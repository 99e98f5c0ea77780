"""`selfpatch show`: draw what the patch features see."""

from typing import Annotated

import tyro

from selfpatch.cli.parsing import Flat, NetworkOptions, read_options
from selfpatch.config.schema import DataName, Name, settings
from selfpatch.core.text import visible
from selfpatch.visualization.config import ShowConfig


@settings
class ShowOptions(NetworkOptions):
    """Draw each image's patch features, and for some patches the similar ones and the positives that are picked."""

    images: tyro.conf.Positional[tuple[DataName, ...]]
    """Image files."""
    out: Name = "pictures"
    """Folder for the pictures."""
    config: Annotated[ShowConfig, Flat] = ShowConfig()


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    options = read_options(ShowOptions, "show", arguments)
    if not options.images:
        raise ValueError("no image was named; give one or more files")
    weights = options.named_weights()
    from selfpatch.api.show import show

    for picture in show(weights, options.images, options.out, options.config, **options.loading()):
        print(visible(str(picture)))
    return 0
