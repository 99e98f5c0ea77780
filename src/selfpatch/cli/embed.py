"""`selfpatch embed`: write features of many images to a file."""

from typing import Annotated

from selfpatch.cli.parsing import DryRunOptions, Flat, NetworkOptions, print_report, read_options
from selfpatch.cli.progress_bar import progress_bar
from selfpatch.config.schema import DataName, Name, settings
from selfpatch.core.text import visible
from selfpatch.core.torchrun import announced_rank
from selfpatch.embedding.config import EmbedConfig


@settings
class EmbedOptions(DryRunOptions, NetworkOptions):
    """Write image and patch features of all images of a source to a file, in bounded memory.

    A call that was stopped continues when it is called again. Several processes share the images:
    torchrun --nproc-per-node N -m selfpatch embed ...
    """

    data: DataName
    """Folder of images, tar shard, zip archive, Parquet file, text file that lists any of these, or URL of one; or a
    video; or a folder of videos, with --fps or --every."""
    out: Name
    """File to write; its suffix chooses the format: .safetensors, .npz, .parquet or .zarr."""
    config: Annotated[EmbedConfig, Flat] = EmbedConfig()


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    options = read_options(EmbedOptions, "embed", arguments)
    weights = options.named_weights()
    from selfpatch.api.embed import embed

    if options.dry_run:
        print_report(embed(weights, options.data, options.out, options.config, dry_run=True, **options.loading()))
        return 0
    with progress_bar("embed") as progress:
        path = embed(weights, options.data, options.out, options.config, **options.loading(), progress=progress)
    if announced_rank() == 0:
        print(f"written to {visible(str(path))}")
    return 0
