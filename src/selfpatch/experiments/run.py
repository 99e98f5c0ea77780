"""Running of a study, from its file to its report; a stopped study continues where it was.

Files in the folder of a study::

    dino-selfpatch-seed0/           folder of a job, see `jobs`
    report.md, report.html          report, written anew after each job
    figures/                        figures of report.md
    timing.json                     ratios of step times, for arms with equal training time
    images-photos-scans.txt         training data of arms with more than one source
    logs/                           output of the worker processes
"""

import contextlib
import functools
import gc
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from selfpatch.api.interrupted import Interrupted
from selfpatch.api.launch import JobConfig
from selfpatch.core.atomic_io import make_folder
from selfpatch.core.distributed import find_device
from selfpatch.core.lock import locked
from selfpatch.core.machine import num_cores
from selfpatch.core.signals import raising_signals
from selfpatch.core.text import counted
from selfpatch.core.torchrun import announced_world_size
from selfpatch.experiments.collect import collect_results, draw_sheet
from selfpatch.experiments.job_queue import queue_jobs
from selfpatch.experiments.jobs import Job, WorkerSlot, is_done, jobs_of, run_job, training_data
from selfpatch.experiments.report import write_study_report
from selfpatch.experiments.spec import Study, read_study
from selfpatch.experiments.timing import TIMING_FILE, equal_time_epochs, time_arm, untimed
from selfpatch.experiments.worker_pool import run_jobs
from selfpatch.training.factory import make_loader, make_student_teacher, open_training_data

MAX_CPU_PROCESSES = 4
"""Largest default number of processes on a CPU; each takes a gigabyte of memory or more."""


def run_study(
    path: str | Path,
    data: str | Path,
    out: str | Path | None = None,
    *,
    size: str | None = None,
    weights: str | None = None,
    only: Collection[str] = (),
    seeds: Collection[int] = (),
    device: str = "auto",
    processes: int | None = None,
    queue: JobConfig | None = None,
    command: str = "",
    notify: Callable[[str], None] = print,
) -> list[str]:
    """Run what is missing of a study, and write its report.

    The function starts processes that import the calling script: call it below `if __name__ == "__main__"`.

    Args:
        path: file of the study, see `experiments.spec`.
        data: data folder, which the paths in the file are relative to.
        out: folder of the study. If None, studies/NAME or studies/NAME-SIZE.
        size: one of the sizes in the file.
        weights: weights of the arms with `init: weights`, as `selfpatch.load` takes them.
        only: rows of the table, arms or baselines, that are run now; the others keep what they have. If empty, all.
        seeds: seeds that are run now; rows without seeds are run with any. If empty, all.
        device: one device, as torch names it, or `auto` for every CUDA device, else MPS, else the CPU.
        processes: number of jobs that run at once, spread over the devices. If None, one for each CUDA device; on a
            CPU one for each core, at most four. For small networks one core each is fastest.
        queue: time, cores and options of Slurm, which then runs each network in a job of its own. If None, processes
            of this machine run them.
        command: command that the report names.
        notify: called with a line for each event.

    Returns:
        A sentence for each failure, as in the report.

    Raises:
        ValueError: the file, the data, the weights or the folder are invalid, the study has no such row or seed, or
            another process runs the study.
    """
    if announced_world_size() > 1:
        raise ValueError("a study starts its own processes, one for each device; call it without torchrun")
    study = read_study(path, data, size, weights)
    if queue is not None and processes is not None:
        raise ValueError(f"processes is {processes}, but Slurm decides how many jobs run at once; leave it out")
    slots = _slots(device, processes) if queue is None else [WorkerSlot(device, queue.cpus_per_process or 1)]
    chosen = _choose(jobs_of(study, {}), only, seeds)
    name = Path(path).stem if size is None else f"{Path(path).stem}-{size}"
    folder = Path(out) if out is not None else Path("studies") / name
    make_folder(folder)
    with locked(folder), raising_signals():
        return _run(study, chosen, folder.resolve(), slots, queue, command, notify)


def _run(
    study: Study,
    chosen: Sequence[Job],
    out: Path,
    slots: Sequence[WorkerSlot],
    queue: JobConfig | None,
    command: str,
    notify: Callable[[str], None],
) -> list[str]:
    _check_arms(study, out)
    _time_arms(study, {job.row for job in chosen}, out, slots[0], queue, notify)
    jobs = jobs_of(study, equal_time_epochs(study, out / TIMING_FILE))
    missing = [job for job in jobs if not is_done(job, study, out)]
    folders = {job.folder for job in chosen}
    due = [job for job in missing if job.folder in folders]
    notify(f"{study.title}: {counted(len(jobs), 'job')}, {len(jobs) - len(missing)} done before")
    failures: list[str] = []

    def write_report(num_ended: int) -> Path:
        device, num_missing = slots[0].device if queue is None else "", len(missing) - num_ended
        return write_study_report(collect_results(study, jobs, out, failures, num_missing, command, device), out)

    execute = functools.partial(_execute, study=study, out=out)
    ended = _runner(queue, slots[0], lambda job: job.folder)(
        due, execute, slots, out / "logs", lambda job, slot: notify(f"{job.name}: on {slot.device}")
    )
    with contextlib.closing(ended):
        for num_ended, (job, sentences) in enumerate(ended, start=1):
            job_failures = [f"{job.name}: {sentence}" for sentence in sentences]
            failures += job_failures
            notify("\n".join(job_failures) or f"{job.name}: done, {len(due) - num_ended} left")
            write_report(num_ended)
    try:
        draw_sheet(study, jobs, out, slots[0].device if queue is None else "cpu", notify)
    except ValueError as error:
        failures.append(f"the sheet of patch features cannot be drawn: {error}")
    notify(f"report     {write_report(len(due))}")
    return failures


def _choose(jobs: Sequence[Job], only: Collection[str], seeds: Collection[int]) -> list[Job]:
    """Return the jobs of these rows and seeds, and those of the rows that have no seed; an empty choice is all."""
    for noun, names, known in (("row", only, [job.row for job in jobs]), ("seed", seeds, [job.seed for job in jobs])):
        for name in names:
            if name not in known:
                choices = ", ".join(str(each) for each in dict.fromkeys(known) if each is not None)
                raise ValueError(f"the study has no {noun} {name!r}; it has: {choices}")
    return [job for job in jobs if (not only or job.row in only) and (not seeds or job.seed in (None, *seeds))]


def _check_arms(study: Study, out: Path) -> None:
    """Build each arm's network and loader, so that a wrong recipe is found before hours have passed."""
    for arm in study.arms:
        try:
            images = open_training_data(replace(arm.config, data=training_data(arm.pretrain, out)))
            make_loader(arm.config, make_student_teacher(arm.config)[0], images, torch.device("cpu"))
        except ValueError as error:
            raise ValueError(f"arm {arm.name!r}: {error}") from None


def _runner(queue: JobConfig | None, slot: WorkerSlot, name_of: Callable[[Any], str]) -> Any:
    """Return what runs jobs: the worker pool, or the queue of a cluster."""
    if queue is None:
        return run_jobs
    num_gpus = 0 if slot.device == "cpu" else 1
    return functools.partial(queue_jobs, config=queue, num_gpus=num_gpus, name_of=name_of)


def _time_arms(
    study: Study,
    rows: Collection[str],
    out: Path,
    slot: WorkerSlot,
    queue: JobConfig | None,
    notify: Callable[[str], None],
) -> None:
    """Time the arms of these rows in separate processes, which free all device memory at their ends.

    Jobs of a cluster would run at once, and each adds its arm to the same file: one follows the other.
    """
    file = out / TIMING_FILE
    execute = functools.partial(time_arm, study=study, out=out)
    run = _runner(queue, slot, lambda arm: f"timing-{arm.slug}")
    for arm in untimed(study, file):
        if arm.name in rows:
            ((_, failures),) = run([arm], execute, [slot], out / "logs")
            if failures:
                raise ValueError(f"arm {arm.name!r} cannot be timed: {failures[0]}")
            epochs = counted(equal_time_epochs(study, file)[arm.name], "epoch", "g")
            notify(f"{arm.name}: {epochs} in the time of {arm.equal_time}")


def _execute(job: Job, slot: WorkerSlot, *, study: Study, out: Path) -> list[str]:
    torch.set_num_threads(slot.threads)
    try:
        return run_job(job, study, out, slot)
    except Interrupted as stopped:  # the job is saved, and the whole study is being stopped
        raise SystemExit(128 + stopped.signal_number) from None
    finally:
        if slot.device.startswith("cuda"):
            gc.collect()
            torch.cuda.empty_cache()  # another process may share the device


def _slots(device: str, processes: int | None) -> list[WorkerSlot]:
    """Return the slots that share devices and cores.

    The number of threads does not depend on the number of jobs that are left, as it affects rounding.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"processes is {processes}; use 1 or more, or leave it out")
    chosen = find_device(device)
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    devices = cuda if chosen.type == "cuda" and device in ("auto", "cuda") else [str(chosen)]
    cores = num_cores()
    count = processes or (min(cores, MAX_CPU_PROCESSES) if devices == ["cpu"] else len(devices))
    return [WorkerSlot(devices[i % len(devices)], max(1, cores // count)) for i in range(count)]
