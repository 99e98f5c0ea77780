"""`selfpatch study`: train and measure a grid of recipes over seeds."""

from typing import Annotated, Literal

import tyro
from annotated_types import Interval

from selfpatch.api.launch import JobConfig
from selfpatch.cli.parsing import Flat, read_options
from selfpatch.config.schema import DataName, Name, Seed, plain, settings
from selfpatch.core.text import shell, visible


@settings
class StudyOptions:
    """Train every recipe of a grid with every seed, measure each network, and write one report.

    The report gives mean and spread over seeds, next to the baselines. Finished jobs are kept: a study that was stopped
    continues when it is called again.
    """

    file: tyro.conf.Positional[Annotated[Name, tyro.conf.arg(metavar="FILE")]]
    """YAML file with the arms, the seeds and the evaluations."""
    data: DataName
    """Folder of all data; the file's paths are relative to it."""
    out: Name | None = None
    """Folder for runs, results and report; if not given, studies/FILE-SIZE."""
    size: Name | None = None
    """Name of one of the sizes that the file defines, e.g. cpu or gpu."""
    weights: Name | None = None
    """Weights that replace `weights` in the file's `init: weights`: a run directory, a checkpoint, timm:NAME or
    hf:OWNER/NAME."""
    only: tuple[Name, ...] = ()
    """Rows of the table to run now, by their names in the report: arms and baselines; if not given, all."""
    seeds: tuple[Seed, ...] = ()
    """Numbers of the seeds to run now; if not given, all."""
    device: str = "auto"
    """Device to train on; `auto` takes every CUDA device, else MPS, else the CPU."""
    processes: Annotated[int, Interval(ge=1, le=1024)] | None = None
    """Number of networks trained at once, spread over the devices; if not given, one for each CUDA device, and on a CPU
    one for each core, at most four."""
    executor: Literal["processes", "slurm"] = "processes"
    """Place to run: processes of this machine, or slurm, which runs each network in a job of its own. This command
    waits for the jobs; if it is stopped, they stay in the queue, and the next call waits for them."""
    queue: Annotated[JobConfig, Flat] = JobConfig()

    def __post_init__(self) -> None:
        if self.executor == "processes" and self.queue != JobConfig():
            raise ValueError("minutes, cpus_per_process and the options of slurm need --executor slurm")


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    options = read_options(StudyOptions, "study", arguments)
    from selfpatch.experiments.run import run_study

    command = shell("selfpatch", "study", *arguments)
    values = plain(options) | {"queue": options.queue if options.executor == "slurm" else None}
    del values["executor"]
    failures = run_study(values.pop("file"), values.pop("data"), **values, command=command, notify=_notify)
    return 2 if failures else 0


def _notify(lines: str) -> None:
    print(visible(lines, keep="\n"), flush=True)  # hours may go by before a pipe's buffer is full
