"""The run directory: the files of a run, written so that a kill at any moment loses nothing.

config.yaml       the resolved settings
history.json      command, times, machine and versions of the start and of each resume
data.json         the images that the run trains on
images.npz        size and modification time of each image
metrics.jsonl     one line a record, each with its "step"
tensorboard/      the same numbers, pictures and settings as TensorBoard events
wandb/, mlruns/   the same for Weights & Biases and MLflow, where `logging.loggers` names them
loggers.json      identifiers that W&B and MLflow gave the run
checkpoints/      see `CheckpointStore`
exported/         backbones as safetensors
pictures/         sheets of patch features
report.html       measurements and curves
explore.html      page that compares patches before and after training
skipped.txt       unreadable images, one `path TAB reason` a line
changed.txt       images that had changed when the run was last resumed, one `path TAB what` a line
failed/           batch and state of steps whose loss was not finite
"""

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from selfpatch.checkpoints.checkpoint_store import CheckpointStore, save_atomically
from selfpatch.config.parsing import parse_yaml
from selfpatch.core.atomic_io import clear_error, require_writable, write_atomically
from selfpatch.core.distributed import is_distributed, is_main_process, rank
from selfpatch.core.dry_run import in_dry_run
from selfpatch.core.lock import FILE as LOCK_FILE
from selfpatch.core.lock import locked
from selfpatch.core.signals import postponed_signals
from selfpatch.core.text import shell
from selfpatch.core.text_files import read_text
from selfpatch.core.types import Views

CHECKPOINT_ENTRIES = ("pretrainer", "shape")
"""Entries of a checkpoint that hold the network and its form; without them, a file is no checkpoint of a run."""


class RunDirectory:
    """One run on disk, made by `create` or `open`.

    Any process may read. Only the main process writes, except for `save_failed_step` and `note_skipped`.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = settings
        self.settings_file = path / "config.yaml"
        self.checkpoints = CheckpointStore(path / "checkpoints", CHECKPOINT_ENTRIES)
        self.pictures = path / "pictures"
        self.explorer = path / "explore.html"
        self.exported_backbone = path / "exported" / "backbone.safetensors"
        self._made_folder = False
        self._skipped = path / "skipped.txt"
        self._noted: set[str] = set()

    @classmethod
    def create(cls, path: str | Path, settings: Mapping[str, Any]) -> "RunDirectory":
        """Create a run in a folder that is new or empty, on the main process only; `settings` are plain nested values.

        In a dry run, only check that it can be made.

        Raises:
            ValueError: the folder holds files, is a file, or cannot be written to.
        """
        assert is_main_process() or in_dry_run(), "the main process creates the run directory; the others open it"
        path = Path(path).expanduser()
        run = cls(path, settings)
        content = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
        with run._refusals():
            if in_dry_run():
                run._require_new()
                return run
            run._made_folder = not path.exists()
            path.mkdir(parents=True, exist_ok=True)
            with run.held():  # two processes may begin at once
                run._require_new()
                try:
                    write_atomically(run.settings_file, content)
                    for folder in (run.checkpoints.folder, run.exported_backbone.parent, run.pictures):
                        folder.mkdir()
                except BaseException:
                    run.discard()
                    raise
        return run

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Keep other processes from writing to the run inside the context.

        Raises:
            ValueError: another process writes to it.
        """
        return locked(self.path, "wait until it ends, or stop it")

    @property
    def can_be_resumed(self) -> bool:
        """True if there is something to keep: a checkpoint, or a failed step for replay."""
        return any(self.checkpoints.folder.glob("step-*")) or (self.path / "failed").exists()

    def discard(self) -> None:
        """Remove the files of a run that failed at its start, which would block the next try.

        The folder itself stays if it was there before. Nothing is raised: why the run failed is more important. A
        signal waits, as the launcher sends SIGTERM to every process once one has failed.
        """
        with postponed_signals(), contextlib.suppress(OSError):
            for path in self.path.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
            if self._made_folder:
                self.path.rmdir()

    def _require_new(self) -> None:
        if self.settings_file.exists():
            command = shell("selfpatch", "resume", self.path)
            raise ValueError(f"{self.path} already holds a run; use `{command}`, or name another --out")
        require_writable(self.path)
        if self.path.exists() and any(path.name != LOCK_FILE for path in self.path.iterdir()):
            raise ValueError(f"{self.path} already has files in it; name another folder with --out")

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        """Turn an error of the file system into one sentence on why the run cannot be made."""
        try:
            yield
        except FileExistsError:
            raise ValueError(f"{self.path} is a file; name a folder with --out") from None
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise ValueError(f"cannot write to {self.path} ({reason}); name another folder with --out") from None

    @classmethod
    def open(cls, path: str | Path) -> "RunDirectory":
        """Open an existing run without changes on disk, so that a run can be read while it trains.

        Raises:
            ValueError: there is no run, or its config.yaml cannot be read.
        """
        run = cls(Path(path).expanduser(), {})
        file = run.settings_file
        if not file.is_file():
            raise ValueError(f"{path} is no run: it has no config.yaml; name the --out of a `selfpatch pretrain`")
        try:
            run.settings = parse_yaml(read_text(file), str(file))
        except ValueError as error:
            raise ValueError(f"the settings in {file} cannot be read: {error}") from None
        return run

    def remove_partial_files(self) -> None:
        """Remove files that a kill left half-written; on the main process, before it writes anything else."""
        for partial in list(self.path.rglob(".*.tmp")):
            if partial.is_dir():
                shutil.rmtree(partial, ignore_errors=True)
            else:
                partial.unlink(missing_ok=True)

    def save_failed_step(self, batches: Sequence[Views], state: dict[str, Any], message: str, *, step: int) -> Path:
        """Save the micro-batches and the state of a failed step, one file a process; `Views(**batch)` restores each."""
        path = self.path / "failed" / f"step-{step:08d}{f'-rank{rank()}' if is_distributed() else ''}.pt"
        views = [{f.name: getattr(batch, f.name) for f in fields(batch)} for batch in batches]
        save_atomically({"step": step, "message": message, "batches": views, "state": state}, path)
        return path

    def note_skipped(self, bad: Mapping[str, str]) -> None:
        r"""Add unreadable files {path: reason} to skipped.txt, each path once, even if several processes meet it.

        Tabs and line ends in a path are written as \t, \n and \r.
        """
        new = bad.keys() - self._noted
        if not new:
            return
        self._noted |= new
        old = self._skipped.read_bytes().decode("utf-8", "surrogateescape") if self._skipped.exists() else ""
        known = {line.partition("\t")[0] for line in old.split("\n")}
        reasons = {escaped(path): bad[path] for path in bad if path in new}
        lines = [f"{path}\t{' '.join(reason.split())}\n" for path, reason in reasons.items() if path not in known]
        # All lines are appended by one write, since other processes append too.
        with clear_error(self._skipped), open(self._skipped, "a", encoding="utf-8", errors="surrogateescape") as file:
            file.write("".join(lines))


def sheet_of(pictures: Path, step: int) -> Path:
    """Return the file, in a folder of pictures, of the sheet of patch features after a number of steps."""
    return pictures / f"step-{step:08d}.png"


def escaped(path: str) -> str:
    r"""Return a path as a field of a line, with tabs and line ends written as \t, \n and \r."""
    return path.translate({9: "\\t", 10: "\\n", 13: "\\r"})
