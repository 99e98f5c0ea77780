"""`selfpatch show`: draw what the patch features see."""

from __future__ import annotations

from typing import Annotated

import tyro

from selfpatch.cli.network import NetworkOptions
from selfpatch.cli.parsing import Flat, read_options
from selfpatch.config.schema import plain, settings
from selfpatch.visualization.config import ShowConfig


@settings
class ShowOptions(NetworkOptions):
    """Draw each image's patch features, and for some patches the similar ones and the positives that are picked."""

    images: tyro.conf.Positional[tuple[str, ...]]
    """Image files."""
    out: str = "pictures"
    """Folder for the pictures."""
    config: Annotated[ShowConfig, Flat] = ShowConfig()


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    options = read_options(ShowOptions, "show", arguments)
    if not options.images:
        raise ValueError("no image was named; give one or more files")
    weights = options.named_weights()
    from selfpatch.api.show import show

    load_options = plain(options.load)
    drawn = show(weights, options.images, options.out, options.config, device=options.device, load_options=load_options)
    print("\n".join(str(path) for path in drawn))
    return 0
