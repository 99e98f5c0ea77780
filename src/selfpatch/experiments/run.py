"""A study from its file to its report, going on where it was stopped.

In the folder of a study::

    dino-selfpatch-seed0/           a folder for each job, see `jobs`
    report.md, report.html          written anew after each job
    figures/                        what report.md shows
    costs.json                      seconds of a step, where arms are given the same time
    images.txt                      what is trained on, where that is more than one source
    logs/                           what the processes printed
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from selfpatch.api.interrupted import Interrupted
from selfpatch.core.atomic_io import make_folder, write_atomically
from selfpatch.core.distributed import find_device
from selfpatch.experiments.collect import draw_sheet, gather
from selfpatch.experiments.jobs import Job, Place, is_done, jobs_of, run_job
from selfpatch.experiments.report import write_study_report
from selfpatch.experiments.spec import Study, read_study
from selfpatch.experiments.timing import COSTS, equal_time_epochs, time_arm, untimed
from selfpatch.experiments.worker_pool import run_jobs, stopped_by_sigterm
from selfpatch.training.factory import make_loader, make_student_teacher, open_training_data

MOST_PROCESSES = 4
"""On a CPU, unless more are asked for: each takes a gigabyte or more."""


def run_study(
    path: str | Path,
    data: str | Path,
    out: str | Path | None = None,
    *,
    size: str | None = None,
    device: str = "auto",
    processes: int | None = None,
    command: str = "",
    tell: Callable[[str], None] = print,
) -> list[str]:
    """Runs what is missing of a study, and writes its report; called again, it goes on where it was stopped.

    It begins processes anew, which import the script that it is called from: call it below `if __name__ == "__main__"`.

    Args:
        path: the study's file, see `study.plan`.
        data: the folder of all data, which the file's paths are relative to.
        out: folder; None: studies/NAME, or studies/NAME-SIZE.
        size: one of the file's sizes.
        device: auto: every CUDA device, else MPS, else the CPU; or one device, as torch names it.
        processes: jobs that run at once, shared out over the devices; None: one a CUDA device, and on a CPU one a core
            up to four: networks of a study are small, and one core each is faster than all cores for one.
        command: that the report is to name.
        tell: called with a line for each thing that happens.

    Returns:
        A sentence for each thing that failed; the report says the same.

    Raises:
        ValueError: something about the file, the data or the folder is wrong, found before anything is run; or another
            process is at the same study.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("a study begins its own processes, one a device; call it without torchrun")
    study = read_study(path, data, size)
    places = _places(device, processes)
    name = Path(path).stem if size is None else f"{Path(path).stem}-{size}"
    folder = Path(out) if out is not None else Path("studies") / name
    make_folder(folder)
    with _alone(folder), stopped_by_sigterm():
        return _run(study, folder.resolve(), places, command, tell)


def _run(study: Study, out: Path, places: Sequence[Place], command: str, tell: Callable[[str], None]) -> list[str]:
    jobs_of(study, {})  # refuses what cannot be
    source = _training_data(study, out)
    _check_arms(study, source)
    _time_arms(study, source, out, places[0], tell)
    jobs = jobs_of(study, equal_time_epochs(study, out / COSTS))
    missing = [job for job in jobs if not is_done(job, study, out)]
    tell(f"{study.title}: {len(jobs)} jobs, {len(jobs) - len(missing)} done before")
    failures: list[str] = []
    execute = functools.partial(_execute, study=study, data=source, out=out)
    ended = run_jobs(missing, execute, places, out / "logs", lambda job, place: tell(f"{job.name}: on {place.device}"))
    with contextlib.closing(ended):
        for job, sentences in ended:
            named = [f"{job.name}: {sentence}" for sentence in sentences]
            failures += named
            missing.remove(job)
            tell("\n".join(named) or f"{job.name}: done, {len(missing)} left")
            write_study_report(gather(study, jobs, out, failures, len(missing), command, places[0].device), out)
    try:
        draw_sheet(study, jobs, out, places[0].device)
    except ValueError as error:
        failures.append(f"the sheet of patch features cannot be drawn: {error}")
    report = write_study_report(gather(study, jobs, out, failures, 0, command, places[0].device), out)
    tell(f"report     {report}")
    return failures


def _time_arms(study: Study, source: str, out: Path, place: Place, tell: Callable[[str], None]) -> None:
    """In a process of its own, so that none of it stays in the memory of a device.

    Raises:
        ValueError: an arm cannot be timed.
    """
    execute = functools.partial(time_arm, study=study, data=source, file=out / COSTS)
    arms = untimed(study, out / COSTS)
    for arm, failures in run_jobs(arms, execute, [place], out / "logs"):
        if failures:
            raise ValueError(f"arm {arm.name!r} cannot be timed: {failures[0]}")
        tell(f"{arm.name}: {equal_time_epochs(study, out / COSTS)[arm.name]:g} epochs take as long as {arm.equal_time}")


def _execute(job: Job, place: Place, *, study: Study, data: str, out: Path) -> list[str]:
    torch.set_num_threads(place.threads)
    try:
        return run_job(job, study, data, out, place)
    except Interrupted as stopped:  # saved; the whole study is being stopped
        raise SystemExit(128 + stopped.signal_number) from None
    finally:
        if place.device.startswith("cuda"):
            gc.collect()
            torch.cuda.empty_cache()  # another process may share the device


def _places(device: str, processes: int | None) -> list[Place]:
    """Where jobs run at once; they share the cores, as many of them each however few jobs are left: rounding depends on
    the number of threads.

    Raises:
        ValueError: fewer than one process, or no such device.
    """
    if processes is not None and processes < 1:
        raise ValueError(f"processes is {processes}; use 1 or more, or leave it out")
    chosen = find_device(device)
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    devices = cuda if chosen.type == "cuda" and device in ("auto", "cuda") else [str(chosen)]
    cores = _cores()
    count = processes or (min(cores, MOST_PROCESSES) if devices == ["cpu"] else len(devices))
    return [Place(devices[i % len(devices)], max(1, cores // count)) for i in range(count)]


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _training_data(study: Study, out: Path) -> str:
    """One source as it is; several as a list of them."""
    sources = [str(source.resolve()) for source in study.pretrain.values()]
    if len(sources) == 1:
        return sources[0]
    file = out / "images.txt"
    write_atomically(file, "".join(f"{source}\n" for source in sources))
    return str(file)


def _check_arms(study: Study, source: str) -> None:
    """Builds each arm's network and loader, so that a recipe that cannot be is refused before hours have gone by.

    Raises:
        ValueError: one cannot.
    """
    for arm in study.arms:
        try:
            data = open_training_data(replace(arm.config, data=source))
            make_loader(arm.config, make_student_teacher(arm.config)[0], data, torch.device("cpu"))
        except ValueError as error:
            raise ValueError(f"arm {arm.name!r}: {error}") from None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Inside, no other process runs a study in this folder; the system takes the lock back when this one is killed."""
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is at the study in {folder}; wait, or name another --out") from None
        yield
