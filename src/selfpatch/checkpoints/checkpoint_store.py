"""The checkpoints of a run: files step-*.pt, or folders step-* of shards, of which the most recent are kept."""

import re
import warnings
import zipfile
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch

from selfpatch.checkpoints.sharded import read_sharded, remove, write_sharded
from selfpatch.core.atomic_io import replacing
from selfpatch.core.dry_run import in_dry_run

_NAME = re.compile(r"step-(\d+)(-kept)?(\.pt)?")


def _name(step: int, keep_forever: bool) -> str:
    return f"step-{step:08d}{'-kept' if keep_forever else ''}"


class CheckpointStore:
    """The folder `checkpoints/` of a run: step-00001234.pt, and step-00001234-kept.pt for those that are never pruned.

    Those that all processes write together are folders of these names without the ending, see `sharded`.

    A checkpoint "at step s" has s steps behind it: the next step to take is s.
    """

    def __init__(self, folder: Path, entries: Iterable[str] = ()) -> None:
        """Open the store in a folder; a file without one of the `entries`, or of another step, is passed over."""
        self.folder = folder
        self._entries = frozenset(entries)
        self._foreign: set[Path] = set()

    def save(self, state: dict[str, Any], *, step: int, keep: int, keep_forever: bool = False) -> Path:
        """Write a checkpoint, then remove all but the most recent ones.

        The new file is complete and on disk before an old one is removed, so the disk holds `keep` + 1 for a moment.

        Args:
            state: tensors, numbers, strings and containers of them; `load_checkpoint` unpickles nothing else.
            step: number of steps taken.
            keep: number of most recent checkpoints to keep; those kept forever neither count nor go.
            keep_forever: never prune this checkpoint.

        Raises:
            OSError: the disk is full or cannot be written to; earlier checkpoints are as they were.
        """
        assert keep >= 1, "a run without a checkpoint cannot be resumed"
        path = self.folder / f"{_name(step, keep_forever)}.pt"
        save_atomically(state, path)
        self._prune(step, keep)
        return path

    def save_sharded(
        self, state: dict[str, Any], *, step: int, keep: int, keep_forever: bool, group: Any
    ) -> "Future[object]":
        """Begin to write a checkpoint with all processes; `sharded.finish_writing` waits for it.

        Arguments are as for `save`, and `group` as for `sharded.write_sharded`.
        """
        path = self.folder / _name(step, keep_forever)
        return write_sharded(state, path, group, lambda: self._prune(step, keep))

    def _prune(self, step: int, keep: int) -> None:
        """Remove all checkpoints but the most recent ones up to the one that has just been saved at a step."""
        # A checkpoint later than the one just saved could not be read when the run was resumed. Were it counted among
        # the most recent, it would push out a good one.
        saved = self._newest_first()
        unreadable = [old for saved_at, old in saved if saved_at > step]
        prunable = [old for saved_at, old in saved if saved_at <= step and not old.stem.endswith("-kept")]
        for old in unreadable + prunable[keep:]:
            remove(old) if old.is_dir() else old.unlink(missing_ok=True)

    def _newest_first(self) -> list[tuple[int, Path]]:
        matches = [(_NAME.fullmatch(path.name), path) for path in self.folder.glob("step-*")]
        return sorted(((int(match[1]), path) for match, path in matches if match), reverse=True)

    def all(self) -> list[tuple[int, Path]]:
        """Return (step, path) of all checkpoints, the earliest first."""
        return self._newest_first()[::-1]

    def kept(self) -> list[tuple[int, Path]]:
        """Return (step, path) of the checkpoints that are never pruned, the earliest first."""
        return [(step, path) for step, path in self.all() if path.stem.endswith("-kept")]

    def newest(self) -> Path | None:
        """Return the newest checkpoint that reads completely, or None if none was ever written.

        A checkpoint that does not read, or is none of a run, is skipped with a warning.

        Raises:
            ValueError: there are checkpoints, and none of them reads.
        """
        paths = [(step, path) for step, path in self._newest_first() if path not in self._foreign]
        for step, path in paths:
            try:
                self._require_own(read_whole(path), step)
                return path
            except ValueError as error:
                warnings.warn(f"checkpoint {path} cannot be read and is skipped: {error}", stacklevel=2)
        if count := len(paths) + len(self._foreign):
            raise ValueError(
                f"no checkpoint in {self.folder} can be read ({count} there); start again with another --out"
            )
        return None

    def _require_own(self, state: Any, step: int) -> None:
        if not self._entries:
            return
        if not isinstance(state, dict) or not self._entries <= state.keys():
            raise ValueError("it is no checkpoint of a run")
        if state.get("step", step) != step:
            raise ValueError(f"it is of step {state['step']}, unlike its name")

    def pass_over(self, path: Path, reason: str) -> None:
        """Leave a checkpoint out from now on, because it does not fit the run."""
        warnings.warn(f"checkpoint {path} is of another run and is skipped: {reason}", stacklevel=2)
        self._foreign.add(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Load a checkpoint, with tensors mapped from the file, or read from shards when they are used.

    The moments of the optimizer are left out of the latter; `sharded.load_sharded` loads them.
    """
    if path.is_dir():
        return read_sharded(path)
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return state


def read_whole(path: Path) -> Any:
    """Load a file of `save_atomically`, with tensors mapped from it; in a dry run, only their shapes.

    Raises:
        ValueError: bytes are missing or damaged, or it is another file.
    """
    if path.is_dir():
        return read_sharded(path)
    try:
        with zipfile.ZipFile(path) as archive:
            # torch.load does not notice damaged tensors, and mapped ones would fail only when touched.
            if not in_dry_run() and (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{damaged} is damaged")
        return torch.load(path, map_location="meta" if in_dry_run() else "cpu", weights_only=True, mmap=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise  # not a fault of the file
    except Exception as error:  # damaged bytes make the readers fail in many ways
        raise ValueError(str(error).partition("\n")[0]) from error


def save_atomically(state: dict[str, Any], path: Path) -> None:
    """Write `state` with torch.save; a kill or an OSError of a full disk leaves the old file or the new one."""
    with replacing(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # On a full disk torch's own error, about positions in the archive, hides the cause.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
