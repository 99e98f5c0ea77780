"""Options of a study."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import tyro


@dataclass(frozen=True, kw_only=True)
class Study:
    """Train every recipe of a grid with every seed, measure each, and write one report with the mean, the spread and
    what a network has to beat. What is there already is not done again: a study that was stopped, at whatever moment,
    goes on when it is called again."""

    file: tyro.conf.Positional[str]
    """YAML file: the arms, the seeds, the evaluations."""
    data: str
    """Folder of all data; the file's paths are relative to it."""
    out: str | None = None
    """Folder for runs, results and report; None: studies/FILE-SIZE."""
    size: str | None = None
    """One of the sizes that the file names: cpu or gpu, say."""
    device: str = "auto"
    """auto: every CUDA device, else MPS, else the CPU."""
    processes: int | None = None
    """Networks that are trained at once, shared out over the devices; None: one a CUDA device, and on a CPU one a core,
    at most four."""

    def run(self, command: str) -> list[str]:
        """What failed, a sentence each; the report names the command."""
        from selfpatch.experiments.run import run_study

        return run_study(
            self.file,
            self.data,
            self.out,
            size=self.size,
            device=self.device,
            processes=self.processes,
            command=command,
            tell=partial(print, flush=True),  # hours may go by before a pipe's buffer is full
        )
