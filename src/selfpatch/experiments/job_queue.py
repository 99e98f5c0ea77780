"""Jobs of a study on a cluster: each is a job of Slurm, which a study that was stopped finds again.

Files in the folder of the jobs::

    NAME/queued.txt          Slurm's number of the job
    NAME/4711_0_log.out      its output; next to it are submitit's files
"""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from selfpatch.api.launch import JobConfig, LaunchConfig, submit
from selfpatch.config.schema import plain
from selfpatch.core.atomic_io import write_atomically
from selfpatch.core.text_files import read_text
from selfpatch.experiments.worker_pool import Execute, outcome_of

if TYPE_CHECKING:
    import submitit

J = TypeVar("J")
S = TypeVar("S")

ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "REQUEUED", "REQUEUE_HOLD", "COMPLETING", "PREEMPTED", "SUSPENDED")
"""States in which Slurm will run, or go on with, a job."""


def queue_jobs(
    jobs: Sequence[J],
    execute: Execute[J, S],
    slots: Sequence[S],
    logs: Path,
    started: Callable[[J, S], None] = lambda job, slot: None,
    *,
    config: JobConfig,
    num_gpus: int,
    name_of: Callable[[J], str],
    poll_seconds: float = 10.0,
) -> Generator[tuple[J, list[str]]]:
    """Queue jobs as `worker_pool.run_jobs` runs them, and yield each one when it has ended, with its failures.

    If the caller stops, the jobs stay in the queue; those that have not ended by the next call are waited for.

    Args:
        jobs: jobs to run.
        execute: function that runs one, see `Execute`; it continues from what is on disk.
        slots: one slot, which all jobs receive.
        logs: folder of the jobs.
        started: called for each job that is queued.
        config: time, cores and options of sbatch.
        num_gpus: number of GPUs for each job.
        name_of: returns the name of a job, a name of a folder.
        poll_seconds: time between looks at the jobs.
    """
    (slot,) = slots
    launch = LaunchConfig(**plain(config), gpus_per_node=num_gpus, processes_per_node=1)
    queued: dict[str, tuple[J, submitit.Job[Any]]] = {}
    for job in jobs:
        folder = logs / name_of(job)
        queued_job = _queued_before(folder)
        if queued_job is None:
            queued_job = submit(_run, (execute, job, slot), launch, folder, name_of(job))
            write_atomically(folder / "queued.txt", queued_job.job_id)
            started(job, slot)
        queued[queued_job.job_id] = job, queued_job
    from submitit.helpers import as_completed

    for ended in as_completed([each for _, each in queued.values()], poll_frequency=poll_seconds):
        (logs / name_of(queued[ended.job_id][0]) / "queued.txt").unlink(missing_ok=True)
        yield queued[ended.job_id][0], _failures(ended)


def _queued_before(folder: Path) -> "submitit.Job[Any] | None":
    """Return the job that an earlier call has queued and that has not ended."""
    file = folder / "queued.txt"
    if not file.is_file():
        return None
    import submitit

    job: submitit.Job[Any] = submitit.SlurmJob(folder, read_text(file).strip())
    job.get_info(mode="force")
    return job if job.state.partition(" ")[0].upper() in ALIVE else None


def _run(argument: tuple[Execute[Any, Any], Any, Any]) -> list[str]:
    """Run a job on the machine that Slurm gives it, and return a sentence for each failure."""
    return outcome_of(*argument)[0]


def _failures(job: "submitit.Job[Any]") -> list[str]:
    error = job.exception()
    if error is None:
        return list(job.result())
    log = job.paths.stdout
    return [f"job {job.job_id} of Slurm ended in the state {job.state}; its last output is in {log}"]
