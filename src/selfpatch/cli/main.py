"""Entry point of the command line: finds the command, and turns errors into one sentence and an exit code."""

import contextlib
import importlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from selfpatch.api.interrupted import Interrupted
from selfpatch.cli.failure_log import write_failure_log
from selfpatch.core.command_line import running
from selfpatch.core.console import forgiving_output
from selfpatch.core.failures import (
    FailedElsewhere,
    FailedHere,
    is_lost_process,
    is_out_of_memory,
    is_unknown_home,
    sentence_of,
)
from selfpatch.core.signals import Terminated, raising_signals
from selfpatch.core.text import visible
from selfpatch.core.torchrun import announced_rank, announced_world_size
from selfpatch.core.version import VERSION

COMMANDS = (
    "pretrain", "recipes", "resume", "evaluate", "show", "explore", "embed", "prepare", "export", "study", "launch",
    "bench", "completion",
)  # fmt: skip
"""Modules of this package, imported when called; `run` takes the arguments after the name and returns the exit code."""

ONE_PROCESS = ("recipes", "show", "explore", "export", "prepare", "launch", "bench", "completion")
"""Commands that processes of torchrun cannot share; a study starts its own ones and says so."""

USAGE = """selfpatch {version}: self-supervised pre-training for good patch features, and evaluations of them

  selfpatch pretrain [--data PHOTOS]               train on a folder of images, or on built-in sample photographs
  selfpatch recipes [NAME]                         list the built-in recipes, or print one
  selfpatch resume DIR                             continue a run exactly where it stopped
  selfpatch evaluate NAME --weights W --data D     measure weights by a published protocol:
                                                   {evaluations}
  selfpatch evaluate all --suite S --weights W     run every evaluation that a file lists, and write one report
  selfpatch evaluate --compare A B                 compare the results in two folders
  selfpatch show --weights W IMAGE...              draw the patch features of images
  selfpatch embed --weights W --data D --out F     write the features of many images to a file
  selfpatch explore --weights W IMAGE...           write a page to compare patches in a browser; or: explore RUN
  selfpatch prepare --data D --out SHARDS          make images smaller once, in tar shards that train faster
  selfpatch export --weights W --to timm --out DIR write weights for timm, transformers or onnxruntime
  selfpatch study FILE --data D                    train and measure a grid of recipes over seeds, with one report
  selfpatch launch --nodes N -- pretrain ...       run a command on many GPUs, by Slurm or on this machine
  selfpatch bench [PART...]                        time the fast paths against their plain references, in a checkout
  selfpatch completion bash|zsh                    print a script that completes commands with the Tab key

`selfpatch COMMAND --help` lists the options of a command, `selfpatch --version --verbose` what is installed. Weights
are a run directory, a released checkpoint (DINO, iBOT, SelfPatch, SERE, MoCo, MoBY, DINOv2 and more), a .safetensors
file, a folder of Hugging Face or timm, or timm:NAME or hf:OWNER/NAME. Errors are one sentence; `--debug`, or
SELFPATCH_DEBUG=1, adds the traceback.
"""

ISSUES = "https://github.com/selfpatch/selfpatch/issues"

_OUT_OF_MEMORY = (
    "there is not enough memory; use a smaller batch size, resolution or network, or smaller images "
    "(`--debug` shows what asked for it)"
)

_LOST_PROCESS = (
    "another process of the group has ended or was killed, perhaps because memory ran out; call the command again, or "
    "continue a training with `selfpatch resume`"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments, by default those of this process, name.

    Returns:
        The exit code: 0 if the command succeeded, 2 if the input was wrong or the machine failed, 128 + n if signal n
        stopped it, 1 after an unexpected error.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments or os.environ.get("SELFPATCH_DEBUG", "0") not in ("", "0")
    with forgiving_output(), _plain_warnings():
        try:
            with raising_signals():  # also while an error is told: a launcher may pass on a SIGTERM that came before
                return _run([argument for argument in arguments if argument != "--debug"], debug=debug)
        except KeyboardInterrupt as stopped:  # came while an error was told
            return 143 if isinstance(stopped, Terminated) else 130


def _run(arguments: list[str], *, debug: bool) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        from selfpatch.evaluation.registry import EVALUATIONS

        print(USAGE.format(version=VERSION, evaluations=", ".join(EVALUATIONS)))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(_all_versions() if "--verbose" in arguments else VERSION)
        return 0
    if arguments[0] not in COMMANDS:
        from selfpatch.cli import suggestions

        return _complain(f"there is no command {arguments[0]!r}; {suggestions.for_command(arguments[0], COMMANDS)}")
    if announced_world_size() > 1 and arguments[0] in ONE_PROCESS:
        return _complain(f"`selfpatch {arguments[0]}` runs in one process; call it without torchrun")
    # Threads that spin while they wait take the cores that the loader's processes need. torch reads it on import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _give_a_home()
    try:
        with running(arguments), _shown_traceback(shown=debug):
            return int(importlib.import_module(f"selfpatch.cli.{arguments[0]}").run(arguments[1:]))
    except FailedElsewhere:
        return 2
    except FailedHere as error:
        return _complain(str(error), everywhere=True)
    except (ValueError, OSError) as error:
        return _complain(sentence_of(error), everywhere=announced_world_size() > 1 and _fails_first())
    except Interrupted as stopped:
        return _complain(str(stopped), 128 + stopped.signal_number)
    except Terminated:
        return _complain("ended by SIGTERM", 143)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except Exception as error:
        if is_unknown_home(error):
            return _complain("a path begins with `~` or `~NAME`, whose home folder is unknown; write the path in full")
        if is_out_of_memory(error):
            return _complain(_OUT_OF_MEMORY, everywhere=True)
        if announced_world_size() > 1 and is_lost_process(error):
            return _complain(_LOST_PROCESS, everywhere=True)
        log = write_failure_log(arguments, error)
        where = "the traceback is above" if log is None else f"the traceback is in {log}"
        first_line = next(iter(str(error).splitlines()), "").rstrip(".")
        return _complain(
            f"{arguments[0]} failed unexpectedly ({type(error).__name__}: {first_line}); {where}; "
            f"please report it at {ISSUES}",
            code=1,
            everywhere=True,
        )


def _all_versions() -> str:
    """Return the versions of the software, the device, and which extras are installed."""
    from selfpatch.core.distributed import find_device
    from selfpatch.core.machine import current_versions, device_name, installed_extras

    device = find_device("auto")
    lines = {**current_versions(), "device": f"{device.type} ({device_name(device)})"}
    lines |= {f"extra {name}": state for name, state in installed_extras().items()}
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def _fails_first() -> bool:
    """Return whether no other process of the group has said why it fails."""
    from selfpatch.core.distributed import fails_first

    return fails_first()


def _complain(sentence: str, code: int = 2, *, everywhere: bool = False) -> int:
    """Print a sentence, on the main process unless `everywhere`, and return the exit code."""
    if everywhere or announced_rank() == 0:
        print(f"selfpatch: {visible(sentence)}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _shown_traceback(*, shown: bool) -> Iterator[None]:
    try:
        yield
    except BaseException:
        if shown:
            traceback.print_exc()
        raise


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print a warning as one line, and none of changes about which a user of this program can do nothing."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"selfpatch: warning: {visible(str(message))}\n"
    warnings.filterwarnings("ignore", category=FutureWarning)  # of torch and timm
    try:
        yield
    finally:
        warnings.formatwarning = before


def _give_a_home() -> None:
    """Name a home folder that holds nothing if this user has none; libraries fail without one, but cope with this."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = os.devnull
