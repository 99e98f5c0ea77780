"""`selfpatch resume`: continue a run."""

from typing import Annotated, Literal

import tyro

from selfpatch.cli.parsing import read_options
from selfpatch.config.schema import Name, Workers, settings


@settings
class ResumeOptions:
    """Continue a run exactly where its newest checkpoint is."""

    run: tyro.conf.Positional[Annotated[Name, tyro.conf.arg(metavar="DIR")]]
    """Run directory."""
    device: str | None = None
    """Device to train on; defaults to the run's."""
    workers: Workers | None = None
    """Loader processes per training process; defaults to the run's."""
    parallel: Literal["ddp", "fsdp"] | None = None
    """Sharing of the network by several processes; defaults to the run's."""
    refuse_changed: bool = False
    """Refuse to continue if images have changed since the run began; otherwise a warning names them."""


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    options = read_options(ResumeOptions, "resume", arguments)
    from selfpatch.api.pretrain import resume

    resume(
        options.run, device=options.device, workers=options.workers, parallel=options.parallel,
        refuse_changed=options.refuse_changed,
    )  # fmt: skip
    return 0
