"""Jobs of several processes on a cluster or on this machine, by submitit; a job that is preempted goes on by itself.

    job = submit(function, arguments, LaunchConfig(executor="local", processes_per_node=2), folder)

submitit starts one process for each GPU. They find one another by the variables that torchrun would set.
"""

import contextlib
import importlib.util
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Interval
from pydantic import PositiveFloat, PositiveInt

from selfpatch.config.schema import Name, settings
from selfpatch.core.signals import PREEMPTION

if TYPE_CHECKING:
    import submitit

LOCAL_MINUTES = 10 * 365 * 24 * 60
"""Time limit of a job on this machine, where submitit requires one and nobody waits in a queue."""
SLURM_MINUTES = 24 * 60
"""Default time limit on a cluster."""
MAX_TIMEOUTS = 1000
"""Number of time limits after which a job is not continued; submitit requires one."""


@settings
class SlurmConfig:
    """Options of sbatch."""

    partition: Name | None = None
    """Partition; if not given, the cluster's default."""
    account: Name | None = None
    """Account that the time is charged to."""
    qos: Name | None = None
    """Quality of service."""
    constraint: Name | None = None
    """Features that the machines need, e.g. `h100`."""
    mem_gb: PositiveFloat | None = None
    """Memory of each machine in GB; if not given, the cluster's default."""
    save_seconds: PositiveInt = 120
    """Seconds before the time limit at which the job is told to save: at least one step and the writing of a
    checkpoint."""
    setup: tuple[Name, ...] = ()
    """Shell commands that run first, e.g. "module load cuda"."""
    options: Mapping[Name, str] = field(default_factory=dict)
    """Further options of sbatch, as pairs of name and value: `reservation NAME`."""


@settings
class JobConfig:
    """Time, cores and queue of a job."""

    cpus_per_process: PositiveInt | None = None
    """Number of CPU cores for each process with its loader processes; if not given, the cluster's default."""
    minutes: PositiveInt | None = None
    """Minutes until the job has to save and queue again; if not given, 1440 on a cluster, and no limit on this
    machine."""
    slurm: SlurmConfig = SlurmConfig()


@settings
class LaunchConfig(JobConfig):
    """Machines and processes of a job."""

    executor: Literal["slurm", "local"] = "slurm"
    """Place to run: slurm queues the job on a cluster; local starts it on this machine and waits for its end."""
    nodes: Annotated[int, Interval(ge=1, le=10_000)] = 1
    """Number of machines; they need a shared file system. With 2 or more, their number of processes multiplies."""
    gpus_per_node: Annotated[int, Interval(ge=0, le=64)] = 1
    """Number of GPUs in each machine; each gets one of the processes."""
    processes_per_node: Annotated[int, Interval(ge=1, le=1024)] | None = None
    """Number of processes on each machine; if not given, one for each GPU, or one without GPUs."""

    def __post_init__(self) -> None:
        if self.executor == "local" and self.nodes > 1:
            raise ValueError(f"nodes is {self.nodes}, but --executor local runs on this machine alone; use --nodes 1")

    @property
    def num_local_processes(self) -> int:
        """Number of processes on each machine."""
        return self.processes_per_node or max(1, self.gpus_per_node)

    @property
    def num_processes(self) -> int:
        """Number of processes of the whole job."""
        return self.nodes * self.num_local_processes


class Continued:
    """Function that submitit calls in each process of a job, and calls again when the job was preempted.

    The function continues from what is on disk. If signal n stops it, it saves and raises SystemExit(128 + n). After a
    signal of preemption, the main process queues the job again. After SIGTERM it ends without a result, so that the
    state of Slurm says what has become of the job: Slurm itself puts back one that it preempts, and not one that was
    cancelled.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __call__(self, argument: Any) -> Any:
        """Call the function with the variables that torchrun would set."""
        from submitit import JobEnvironment
        from submitit.helpers import TorchDistributedEnvironment

        os.environ["TORCHELASTIC_MAX_RESTARTS"] = str(MAX_TIMEOUTS)  # a training continues the run that it has begun
        # Each process selects its GPU by LOCAL_RANK.
        group = TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if group.local_world_size > 1 and JobEnvironment().cluster == "local":
            os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does; Slurm gives each process its own cores
        try:
            return self.function(argument)
        except SystemExit as stopped:
            code = stopped.code
        if code == 128 + signal.SIGTERM:
            raise SystemExit(code)  # no error, which submitit would keep as the job's result
        if not isinstance(code, int) or code - 128 not in PREEMPTION:
            raise JobFailed(f"exit code {code}")
        # submitit's handler queues the job again and ends the main process; the others return.
        signal.raise_signal(signal.Signals[f"SIG{JobEnvironment.USR_SIG}"])
        return None

    def checkpoint(self, argument: Any) -> Any:
        """Return what submitit queues: the same call."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, argument)


class JobFailed(Exception):
    """The function of a job ended with an exit code, after it has said why."""


def submit(
    function: Callable[[Any], Any], argument: Any, config: LaunchConfig, folder: Path, name: str
) -> "submitit.Job[Any]":
    """Queue or start a job that calls `function(argument)` in each of its processes.

    Args:
        function: function of a module, see `Continued`.
        argument: its argument, which can be pickled.
        config: machines and queue.
        folder: folder for the job's script, its pickled call and the output of its processes.
        name: name in the queue.

    Raises:
        ValueError: submitit is not installed, or the scheduler refuses the job.
    """
    executor = _executor(config, folder, name)
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with _ignored_interrupts():
            return executor.submit(Continued(function), argument)
    except (FailedJobError, FailedSubmissionError) as error:
        raise ValueError(f"sbatch refuses the job: {' '.join(str(error).split())}") from None


@contextlib.contextmanager
def _ignored_interrupts() -> Iterator[None]:
    """Let processes that start inside ignore Ctrl-C unless they have a handler of their own, as a training has.

    submitit's controller of a local job would kill its processes one second after Ctrl-C.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def batch_script(config: LaunchConfig, folder: Path, name: str) -> str:
    """Return the script that `submit` would give to sbatch, or without Slurm a sentence; nothing is written."""
    if config.executor == "local":
        _require_gpus(config.gpus_per_node)
        return f"processes that start on this machine: {config.num_processes}"
    executor = _executor(config, folder, name, dry_run=True)
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def _require_gpus(number: int) -> None:
    import torch

    present = torch.cuda.device_count()
    if 0 < present < number:
        raise ValueError(f"gpus_per_node is {number}, but this machine has {present}; use --gpus-per-node {present}")


def _executor(config: LaunchConfig, folder: Path, name: str, *, dry_run: bool = False) -> Any:
    if importlib.util.find_spec("submitit") is None:
        raise ValueError("jobs are started by submitit; install it with `pip install 'selfpatch[slurm]'`")
    import submitit

    if config.executor == "local":
        executor: Any = submitit.LocalExecutor(folder, max_num_timeout=MAX_TIMEOUTS)
        executor.update_parameters(**_local_parameters(config))
        return executor

    class Slurm(submitit.SlurmExecutor):
        """Executor that can print a script where there is no cluster."""

        @classmethod
        def affinity(cls) -> int:
            return 2 if dry_run else super().affinity()

    try:
        executor = Slurm(folder, max_num_timeout=MAX_TIMEOUTS)
    except RuntimeError:
        raise ValueError(
            "this machine has no `srun` and is part of no Slurm cluster; call the command on a login node, or use "
            "--executor local"
        ) from None
    executor.update_parameters(**_slurm_parameters(config, name))
    return executor


def _local_parameters(config: LaunchConfig) -> dict[str, Any]:
    named = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return {
        "gpus_per_node": config.gpus_per_node,
        "visible_gpus": tuple(map(int, named)) if all(part.isdigit() for part in named) else (),
        "tasks_per_node": config.num_local_processes,
        "timeout_min": config.minutes or LOCAL_MINUTES,
        "signal_delay_s": config.slurm.save_seconds,
        "stderr_to_stdout": True,
    }


def _slurm_parameters(config: LaunchConfig, name: str) -> dict[str, Any]:
    slurm = config.slurm
    given = {key: getattr(slurm, key) for key in ("partition", "account", "qos", "constraint")}
    given |= {"mem": None if slurm.mem_gb is None else f"{slurm.mem_gb * 1024:.0f}M"}
    given |= {"gpus_per_node": config.gpus_per_node or None, "cpus_per_task": config.cpus_per_process}
    # A process that fails ends the others, which would wait for it. Since Slurm 22.05 srun does not inherit the cores.
    srun = ["--kill-on-bad-exit=1"]
    srun += [] if config.cpus_per_process is None else [f"--cpus-per-task={config.cpus_per_process}"]
    return {
        "job_name": name,
        "time": config.minutes or SLURM_MINUTES,
        "nodes": config.nodes,
        "ntasks_per_node": config.num_local_processes,
        "signal_delay_s": slurm.save_seconds,
        "stderr_to_stdout": True,
        "setup": list(slurm.setup),
        "srun_args": srun,
        "additional_parameters": {"requeue": True, **slurm.options},
        **{key: value for key, value in given.items() if value is not None},
    }


def output_of(job: "submitit.Job[Any]", seconds: float = 0.2) -> Iterator[str]:
    """Yield what the main process of a job writes, until the job has ended."""
    log = job.task(0).paths.stdout
    position, ended = 0, False
    while not ended:
        ended = job.done(force_check=True)
        if log.exists():
            with open(log, encoding="utf-8", errors="replace") as file:
                file.seek(position)
                if text := file.read():
                    yield text
                position = file.tell()
        if not ended:
            time.sleep(seconds)


def failed_processes(job: "submitit.Job[Any]") -> Sequence[int]:
    """Return the numbers of the processes of an ended job that failed or were killed."""
    tasks = [job.task(number) for number in range(job.num_tasks)]
    return [
        number
        for number, task in enumerate(tasks)
        if not task.paths.result_pickle.exists() or task.exception() is not None
    ]
