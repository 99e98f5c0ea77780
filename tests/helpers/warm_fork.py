"""Real processes that start in a moment: each is forked from one that has imported torch and the package.

The server is `python -m tests.helpers.warm_fork`. It has one thread and computes nothing, so that a fork of it is like
a new process: with standard streams, folder, environment and session of its own. Signals, limits and exit codes work
as they do for a process that was started by `python -m selfpatch`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import io
import os
import pickle
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parents[2]
_LARGEST_REQUEST = 1 << 17
_LAZY = (
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
    "torch.utils.tensorboard",
    "tyro._backends",
)
"""Modules that commands import when they need them."""


class WarmProcess:
    """A forked process, with those methods of `subprocess.Popen` that tests use. It leads a session of its own."""

    def __init__(self, status: IO[bytes]) -> None:
        self._status = status
        self.pid = int(status.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, -n after signal n, or None while the process runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = os.waitstatus_to_exitcode(int(self._status.readline()))
            self._status.close()
        return self.returncode

    def wait(self, timeout: float = 300) -> int:
        """Wait for the end and return the exit code."""
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            self.kill()
            raise subprocess.TimeoutExpired(f"forked process {self.pid}", timeout)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            if self.poll() is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class WarmServer:
    """Starts functions in forks of one warm process."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                start_new_session=True,
            )

    def start(
        self,
        function: Callable[..., int | None],
        *args: Any,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: IO[Any] | int | None = None,
        stdout: IO[Any] | int | None = None,
        stderr: IO[Any] | int | None = None,
    ) -> WarmProcess:
        """Start `function(*args)` in a new process, whose exit code is what it returns.

        Args:
            function: function of a module.
            args: its arguments, which can be pickled.
            environment: environment of the process; defaults to this process's.
            cwd: folder of the process; defaults to this process's.
            stdin: files or numbers of files; those that are not given are /dev/null.
            stdout: as `stdin`.
            stderr: as `stdin`.
        """
        surroundings = (str(cwd or Path.cwd()), dict(os.environ if environment is None else environment))
        request = pickle.dumps((surroundings, pickle.dumps((function, args))))
        assert len(request) < _LARGEST_REQUEST
        ours, status = os.pipe()
        with open(os.devnull, "r+b") as null, open(status, "wb") as status_file:
            streams = [null if stream is None else stream for stream in (stdin, stdout, stderr)]
            descriptors = [stream if isinstance(stream, int) else stream.fileno() for stream in streams]
            socket.send_fds(self._socket, [request], [*descriptors, status_file.fileno()])
        return WarmProcess(open(ours, "rb", buffering=0))

    def run(
        self, function: Callable[..., int | None], *args: Any, timeout: float = 300, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run `function(*args)` in a new process until it ends, and return its exit code and output."""
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            process = self.start(function, *args, stdout=stdout, stderr=stderr, **options)
            code = process.wait(timeout)
            texts = [_content(file) for file in (stdout, stderr)]
        return subprocess.CompletedProcess(function.__name__, code, *texts)

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="backslashreplace")


_server: list[WarmServer] = []


def warm_server() -> WarmServer:
    """Return the server of this process, started when it is first needed; it ends with this process."""
    if not _server:
        _server.append(WarmServer())
    return _server[0]


def _serve(requests: socket.socket) -> NoReturn:
    """Fork a process for each request."""
    _import_everything()
    assert len(os.listdir("/proc/self/task")) == 1, "a fork keeps one thread only"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # monitors need not be waited for
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, _LARGEST_REQUEST, 4)
        if not request:
            os._exit(0)  # the tests are over
        if os.fork() == 0:
            break
        for descriptor in descriptors:
            os.close(descriptor)
    requests.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    *streams, status = descriptors
    (cwd, environment), call = pickle.loads(request)
    child = os.fork()
    if child:
        _monitor(child, streams, status)
    os.close(status)
    os.setsid()
    os.chdir(cwd)
    function, args = pickle.loads(call)
    become(environment, streams, function, *args)


def become(
    environment: Mapping[str, str], streams: Sequence[int], function: Callable[..., int | None], *args: Any
) -> NoReturn:
    """Run `function(*args)` as a process of its own would, and end with its exit code.

    Args:
        environment: environment of the process.
        streams: descriptors of its standard streams, which are closed.
        function: returns the exit code; None is 0.
        args: its arguments.
    """
    os.environ.clear()
    os.environ.update(environment)
    _replace_streams(streams)
    try:
        code = int(function(*args) or 0)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except KeyboardInterrupt:
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        code = 1
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End as the interpreter does, without the half second that taking torch down costs."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except OSError:
        code = 120
    os._exit(code)


def _monitor(child: int, streams: Sequence[int], status: int) -> None:
    """Report number and end of a child, and leave."""
    for descriptor in streams:
        os.close(descriptor)
    os.write(status, f"{child}\n".encode())
    ended = os.waitpid(child, 0)[1]
    try:
        os.write(status, f"{ended}\n".encode())
    finally:
        os._exit(0)


def _replace_streams(descriptors: Sequence[int]) -> None:
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
        os.close(descriptor)
    encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
    sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), encoding)
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w", closefd=False)), encoding)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding, "backslashreplace", write_through=True)


def _import_everything() -> None:
    """Import the package, and what its commands import late."""
    import selfpatch

    for module in pkgutil.walk_packages(selfpatch.__path__, "selfpatch."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in _LAZY:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # objects of the imports are not copied into each fork by a collection


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
