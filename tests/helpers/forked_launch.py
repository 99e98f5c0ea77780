"""`selfpatch launch --executor local` whose processes are forked from a warm one, so that they start in a moment."""

from __future__ import annotations

import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import IO, Any

from tests.helpers.command_line import program
from tests.helpers.warm_fork import become


class ForkedModule:
    """Fork of this process that runs `python -m MODULE ARGUMENT`, with what submitit uses of `subprocess.Popen`."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        stdout: IO[Any] | None = None,
        stderr: IO[Any] | None = None,
        **_: Any,
    ) -> None:
        sys.stdout.flush()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            null = os.open(os.devnull, os.O_RDONLY)
            streams = [os.dup(number if file is None else file.fileno()) for number, file in ((1, stdout), (2, stderr))]
            become(env, [null, *streams], run_module, command[command.index("-m") + 1 :])

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def run_module(words: list[str]) -> None:
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def launch(arguments: Sequence[str]) -> int:
    """Run the command line; submitit's controller, and the processes that this starts, are forks."""
    from submitit.local import local

    from selfpatch.cli import launch as command

    vars(local)["subprocess"] = SimpleNamespace(Popen=ForkedModule)
    check = command._check

    def check_in_a_fork(*arguments: Any) -> int:
        """Check a command; forks of a process that has called autograd, as a dry run does, cannot train."""
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(check(*arguments))
            finally:
                os._exit(1)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    vars(command)["_check"] = check_in_a_fork
    return program(["launch", *arguments])
