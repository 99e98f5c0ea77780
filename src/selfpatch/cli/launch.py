"""`selfpatch launch`: run a command on several GPUs or machines."""

import contextlib
import importlib
import io
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

from selfpatch.api.launch import LaunchConfig, batch_script, failed_processes, output_of, submit
from selfpatch.cli.parsing import peek, read_options
from selfpatch.cli.resume import ResumeOptions
from selfpatch.config.schema import Name, settings
from selfpatch.core.text import counted, shell, visible

COMMANDS = ("pretrain", "resume", "evaluate", "embed")
"""Commands that several processes share."""


@settings
class LaunchOptions(LaunchConfig):
    """Run a command on several GPUs or machines, by Slurm or on this machine: selfpatch launch ... -- pretrain ...

    The command is checked before it is queued. One process runs on each GPU. A job that is preempted, or whose time is
    over, saves, queues again and continues exactly where it was.
    """

    folder: Name | None = None
    """Folder for the job's script and output; if not given, the command's --out with `.job` at its end."""
    dry_run: bool = False
    """Check the command, print its dry run and the script for sbatch, and stop: nothing is written."""


def run(arguments: list[str]) -> int:
    """Run the command and return its exit code."""
    own, command = _split(arguments)
    options = read_options(LaunchOptions, "launch", own)
    out = _output(command)
    folder, name = Path(options.folder or f"{out}.job").expanduser(), f"selfpatch-{Path(out).stem}"
    script = batch_script(options, folder, name)
    if code := _check(command, options):
        return code
    if options.dry_run:
        print(script)
        return 0
    job = submit(run_command, tuple(command), options, folder, name)
    log = visible(str(job.task(0).paths.stdout))
    print(f"job {job.job_id}: {counted(options.num_processes, 'process')}; the first one writes to {log}", flush=True)
    if options.executor == "slurm":
        return 0
    try:
        _show(output_of(job))
    except BaseException:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.kill(int(job.job_id), signal.SIGTERM)  # submitit passes it on; a training saves
        _show(output_of(job))
        raise
    if failed := failed_processes(job):
        again = shell("selfpatch", "launch", *own, "--", *(("resume", out) if command[0] == "pretrain" else command))
        raise ValueError(
            f"{len(failed)} of {counted(job.num_tasks, 'process')} failed, as {visible(str(folder))} tells; to "
            f"continue: {again}"
        )
    return 0


def run_command(command: tuple[str, ...]) -> None:
    """Run a command in a process of a job.

    Raises:
        SystemExit: the exit code of the command, if it is not 0.
    """
    from selfpatch.cli.main import main

    if code := main(command):
        raise SystemExit(code)


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the options of `launch`, and the command after ` -- `.

    Raises:
        ValueError: there is no command, or one that several processes cannot share.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    own, command = arguments[:end], arguments[end + 1 :]
    if {"--help", "-h"} & {*own}:
        return own, []
    if not command:
        raise ValueError("there is no command to launch; write it after ` -- `: selfpatch launch --nodes 2 -- pretrain")
    if command[0] not in COMMANDS:
        raise ValueError(f"{command[0]!r} cannot be launched; use one of: {', '.join(COMMANDS)}")
    return own, command


def _output(command: Sequence[str]) -> str:
    """Return the output of a command, which names its job, and in which a job that starts again finds its files."""
    if command[0] == "resume":
        return str(read_options(ResumeOptions, "resume", list(command[1:])).run)
    out = peek(list(command), "out").get("out")
    if not out:
        raise ValueError(f"launch needs the --out of `{command[0]}`, in which a job that starts again finds its files")
    return out


def _check(command: Sequence[str], options: LaunchOptions) -> int:
    """Raise the error that the command would end with, or return its exit code; with `--dry-run`, print its dry run."""
    name, *words = command
    if name == "resume":
        from selfpatch.checkpoints.run_dir import RunDirectory

        RunDirectory.open(_output(command))
    else:
        # The machine that queues a job may have no GPU.
        device = ("--device", "cpu") if options.executor == "slurm" and peek(words, "device") else ()
        shown = contextlib.nullcontext() if options.dry_run else contextlib.redirect_stdout(io.StringIO())
        with _announced(options.num_processes), shown:
            return int(importlib.import_module(f"selfpatch.cli.{name}").run([*words, *device, "--dry-run"]))
    return 0


@contextlib.contextmanager
def _announced(num_processes: int) -> Iterator[None]:
    """Let a dry run see the number of processes that the job will have."""
    before = os.environ.get("WORLD_SIZE")
    os.environ["WORLD_SIZE"] = str(num_processes)
    try:
        yield
    finally:
        del os.environ["WORLD_SIZE"]
        if before is not None:
            os.environ["WORLD_SIZE"] = before


def _show(texts: Iterator[str]) -> None:
    for text in texts:
        print(text, end="", flush=True)
