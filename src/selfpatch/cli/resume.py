"""`selfpatch resume`: continue a run."""

import tyro
from pydantic import NonNegativeInt

from selfpatch.cli.parsing import read_options
from selfpatch.config.schema import settings


@settings
class ResumeOptions:
    """Continue a run exactly where its newest checkpoint is."""

    run: tyro.conf.Positional[str]
    """Run directory."""
    device: str | None = None
    """Device to train on; if not given, that of the run's start."""
    workers: NonNegativeInt | None = None
    """Number of loader processes; if not given, that of the run's start. The samples do not depend on it."""


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    options = read_options(ResumeOptions, "resume", arguments)
    from selfpatch.api.pretrain import resume

    resume(options.run, device=options.device, workers=options.workers)
    return 0
