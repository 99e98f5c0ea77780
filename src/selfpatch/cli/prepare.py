"""`selfpatch prepare`: write the images of a source to tar shards, large ones made smaller."""

from typing import Annotated

from selfpatch.cli.parsing import Flat, read_options
from selfpatch.cli.progress_bar import progress_bar
from selfpatch.config.schema import DataName, Name, settings
from selfpatch.core.text import counted, visible
from selfpatch.data.prepare.config import PrepareConfig


@settings
class PrepareOptions:
    """Write the images of a source to tar shards that train faster: large images are made smaller once.

    Damaged images and near-duplicates are listed. A call that was stopped continues when it is called again.
    """

    data: DataName
    """Folder of images, tar shard, zip archive, Parquet file, text file that lists any of these, or URL of one."""
    out: Name
    """Folder for the shards, new or empty, or that of a call that was stopped."""
    config: Annotated[PrepareConfig, Flat] = PrepareConfig()


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    options = read_options(PrepareOptions, "prepare", arguments)
    from selfpatch.api.prepare import prepare

    with progress_bar("prepare") as progress:
        outcome = prepare(options.data, options.out, options.config, progress=progress)
    print(
        f"{counted(outcome.images, 'image')} in {counted(outcome.shards, 'shard')} ({outcome.megabytes:g} MB) in "
        f"{visible(str(outcome.folder))}: {outcome.resized} resized, {outcome.damaged} damaged and left out, "
        f"{counted(outcome.near_duplicates, 'near-duplicate')}"
    )
    return 0
