"""Entry point of the command line: finds the command, and turns errors into one sentence and an exit code."""

import importlib
import os
import sys
import warnings
from collections.abc import Sequence

from selfpatch.api.interrupted import Interrupted
from selfpatch.core.failures import FailedElsewhere, FailedHere, sentence_of
from selfpatch.core.torchrun import announced_rank
from selfpatch.core.version import VERSION

COMMANDS = ("pretrain", "resume", "evaluate", "show", "export", "study", "bench")
"""Modules of this package, imported when called; `run` takes the arguments after the name and returns the exit code."""

USAGE = """selfpatch {version}: self-supervised pre-training for good patch features, and evaluations of them

  selfpatch pretrain [--data PHOTOS]               train on a folder of images, or on built-in sample photographs
  selfpatch resume DIR                             continue a run exactly where it stopped
  selfpatch evaluate NAME --weights W --data D     measure weights by a published protocol:
                                                   {evaluations}
  selfpatch evaluate all --suite S --weights W     run every evaluation that a file lists, and write one report
  selfpatch evaluate --compare A.json B.json       compare results
  selfpatch show --weights W IMAGE...              draw the patch features of images
  selfpatch export --weights W --to timm --out DIR write weights for timm, transformers or onnxruntime
  selfpatch study FILE --data D                    train and measure a grid of recipes over seeds, with one report
  selfpatch bench [loader|step|ops|davis|scaling]  time the fast paths against their plain references

`selfpatch COMMAND --help` lists the options of a command. Weights are a run directory, a released checkpoint (DINO,
iBOT, SelfPatch, SERE, MoCo, MoBY, DINOv2 and more), a .safetensors file, or timm:NAME.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the arguments, by default those of this process, name.

    Returns:
        The exit code: 0 if the command succeeded, 2 if the input was wrong, 128 + n if signal n stopped it.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        from selfpatch.evaluation.registry import EVALUATIONS

        print(USAGE.format(version=VERSION, evaluations=", ".join(EVALUATIONS)))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(VERSION)
        return 0
    if arguments[0] not in COMMANDS:
        return _complain(f"there is no command {arguments[0]!r}; the commands are: {', '.join(COMMANDS)}")
    # Threads that spin while they wait take the cores that the loader's processes need. torch reads it on import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # torch and timm warn of changes about which a user of this program can do nothing.
    warnings.filterwarnings("ignore", category=FutureWarning)
    try:
        return int(importlib.import_module(f"selfpatch.cli.{arguments[0]}").run(arguments[1:]))
    except FailedElsewhere:
        return 2
    except FailedHere as error:
        return _complain(str(error), everywhere=True)
    except (ValueError, OSError) as error:
        return _complain(sentence_of(error))
    except Interrupted as stopped:
        return _complain(str(stopped), 128 + stopped.signal_number)
    except KeyboardInterrupt:
        return _complain("interrupted", 130)


def _complain(sentence: str, code: int = 2, *, everywhere: bool = False) -> int:
    """Print a sentence, on the main process unless `everywhere`, and return the exit code."""
    if everywhere or announced_rank() == 0:
        print(f"selfpatch: {sentence}", file=sys.stderr)
    return code
