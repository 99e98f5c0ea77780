"""The run directory: everything that a run leaves on disk, written so that a kill at any moment loses nothing.

    config.yaml       the resolved settings
    metrics.jsonl     one line a record, each with its "step"
    tensorboard/      the same numbers as TensorBoard events
    checkpoints/      step-00001234.pt, and step-00001234-kept.pt for those that are never pruned
    exported/         backbones as safetensors
    pictures/         what the run drew
    skipped.txt       unreadable images, one `path TAB reason` a line
    failed/           batch and state of steps whose loss was not finite

A checkpoint "at step s" has s steps behind it: the next step to take is s.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save as serialize_safetensors
from torch import Tensor

from selfpatch.config.parsing import parse_yaml
from selfpatch.config.run import RunConfig
from selfpatch.core.atomic_io import clear_error, replacing, write_atomically
from selfpatch.core.distributed import is_distributed, is_main_process, rank
from selfpatch.core.types import Views

Row = Mapping[str, float | int | str | None]
"""One record: plain Python values by name, "step" among them."""

BEFORE_THE_SETTING = {"loader": {"render": "plain"}}
"""What runs did that were begun before there was a setting for it, where its default is something else."""

_CHECKPOINT = re.compile(r"step-(\d+)(-kept)?\.pt")


class RunDirectory:
    """One run on disk. Any process may read; only the main one writes, but for `save_failure` and `note_skipped`."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        """Use `create` or `open`."""
        self.path = path
        self.config = config
        self.checkpoints = path / "checkpoints"
        self.exported = path / "exported"
        self.pictures = path / "pictures"
        self._metrics = path / "metrics.jsonl"
        self._skipped = path / "skipped.txt"
        self._noted: set[str] = set()
        self._tensorboard = _TensorBoard(path / "tensorboard")

    @classmethod
    def create(cls, path: str | Path, config: RunConfig) -> RunDirectory:
        """A new run in a folder that is empty or not there yet; on the main process only.

        Raises:
            ValueError: the folder holds files, is a file, or cannot be written to.
        """
        assert is_main_process(), "the main process creates the run directory; the others open it"
        path = Path(path).expanduser()
        run = cls(path, config)
        settings = yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if (path / "config.yaml").exists():
                raise ValueError(f"{path} already holds a run; use `selfpatch resume {path}`, or name another --out")
            if any(path.iterdir()):
                raise ValueError(f"{path} already has files in it; name another folder with --out")
            write_atomically(path / "config.yaml", settings)
            for folder in (run.checkpoints, run.exported, run.pictures):
                folder.mkdir()
        except FileExistsError:
            raise ValueError(f"{path} is a file; name a folder with --out") from None
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise ValueError(f"cannot write to {path} ({reason}); name another folder with --out") from None
        return run

    @classmethod
    def open(cls, path: str | Path) -> RunDirectory:
        """An existing run. Changes nothing on disk, so that a run can be looked at while it trains.

        Raises:
            ValueError: there is no run, or its config.yaml cannot be read.
        """
        path = Path(path).expanduser()
        file = path / "config.yaml"
        if not file.is_file():
            raise ValueError(f"{path} is no run: it has no config.yaml; name the --out of a `selfpatch pretrain`")
        try:
            settings = parse_yaml(file.read_text(encoding="utf-8"), str(file))
            config = RunConfig().override(BEFORE_THE_SETTING).override(settings)
        except (OSError, ValueError) as error:
            raise ValueError(f"the settings in {file} cannot be read: {error}") from None
        return cls(path, config)

    def save_checkpoint(self, state: dict[str, Any], *, step: int, keep: int, keep_forever: bool = False) -> Path:
        """Writes a checkpoint, then removes all but the `keep` most recent (those kept forever neither count nor go).

        The new file is complete and on disk before an old one is removed, so the disk holds `keep` + 1 for a moment.

        Args:
            state: tensors, numbers, strings and containers of them, since `load_checkpoint` unpickles nothing else.

        Raises:
            OSError: the disk is full or cannot be written to; earlier checkpoints are as they were.
        """
        assert keep >= 1, "a run without a checkpoint cannot be resumed"
        path = self.checkpoints / f"step-{step:08d}{'-kept' if keep_forever else ''}.pt"
        _save(state, path)
        self._prune(step, keep)
        return path

    def _prune(self, step: int, keep: int) -> None:
        passing = [path for path in self._checkpoints() if not path.stem.endswith("-kept")]
        # Later than the one just saved: the run was resumed from before it, for it could not be read. Were it counted
        # among the most recent, it would push out a good one.
        unreadable = [path for path in self._checkpoints() if _step_of(path) > step]
        recent = [path for path in passing if _step_of(path) <= step]
        for path in unreadable + recent[keep:]:
            path.unlink(missing_ok=True)

    def _checkpoints(self) -> list[Path]:
        """Newest first."""
        found = [path for path in self.checkpoints.glob("step-*.pt") if _CHECKPOINT.fullmatch(path.name)]
        return sorted(found, key=_step_of, reverse=True)

    def kept_checkpoints(self) -> list[tuple[int, Path]]:
        """The steps behind those that are never pruned, and their files; the earliest first."""
        return sorted((_step_of(path), path) for path in self._checkpoints() if path.stem.endswith("-kept"))

    def newest_checkpoint(self) -> Path | None:
        """The newest checkpoint that reads completely; None if none was ever written.

        One that does not read is passed over with a warning.

        Raises:
            ValueError: there are checkpoints, and none of them reads.
        """
        paths = self._checkpoints()
        for path in paths:
            try:
                # torch.load does not notice damaged tensors, and mapped ones would fail only when touched.
                _verify(path)
                torch.load(path, map_location="cpu", weights_only=True, mmap=True)
                return path
            except (MemoryError, torch.OutOfMemoryError):
                raise  # says nothing about the file
            except Exception as error:  # damaged bytes make the readers fail in many ways
                reason = str(error).partition("\n")[0]
                warnings.warn(f"checkpoint {path} cannot be read and is passed over: {reason}", stacklevel=2)
        if paths:
            raise ValueError(
                f"no checkpoint of {len(paths)} in {self.checkpoints} can be read; start anew with another --out"
            )
        return None

    def load_checkpoint(self, map_location: torch.device | str = "cpu") -> dict[str, Any] | None:
        """What `newest_checkpoint` holds, tensors on the CPU mapped from the file; None if none was ever written.

        Raises:
            ValueError: as `newest_checkpoint`.
        """
        path = self.newest_checkpoint()
        return None if path is None else torch.load(path, map_location=map_location, weights_only=True, mmap=True)

    def record(self, row: Row) -> None:
        """Appends one line to metrics.jsonl and its numbers to TensorBoard.

        NaN and infinities are written as null, which every JSON reader takes for a missing value; TensorBoard shows
        them as they are.
        """
        assert "step" in row, "a record without its step cannot be rewound"
        finite = {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in row.items()}
        with clear_error(self._metrics), open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(finite, allow_nan=False) + "\n")
        self._tensorboard.add(row)

    def rows(self) -> list[dict[str, Any]]:
        """All records; a line that a kill left half-written is left out."""
        if not self._metrics.exists():
            return []
        with open(self._metrics, encoding="utf-8", errors="replace") as file:
            return [row for row in map(_parse, file) if row is not None]

    def rewind(self, step: int) -> None:
        """Takes the run up again: drops the records of `step` and later ones, in TensorBoard too, and what a kill left
        half-written. On the main process, before it writes anything else."""
        for stray in self.path.rglob(".*.tmp"):
            stray.unlink(missing_ok=True)
        kept = [row for row in self.rows() if row["step"] < step]
        write_atomically(self._metrics, "".join(json.dumps(row) + "\n" for row in kept))
        self._tensorboard.purge_step = step

    def close(self) -> None:
        """Writes out what TensorBoard still holds in memory."""
        self._tensorboard.close()

    def export(
        self, state_dict: Mapping[str, Tensor], metadata: dict[str, str], name: str = "backbone.safetensors"
    ) -> Path:
        """Writes weights to `exported/name` as safetensors, with `metadata` in the file's header."""
        # Own, contiguous memory: safetensors refuses tensors that share it.
        tensors = {key: x.detach().cpu().clone(memory_format=torch.contiguous_format) for key, x in state_dict.items()}
        path = self.exported / name
        write_atomically(path, serialize_safetensors(tensors, metadata))
        return path

    def save_failure(self, batches: Sequence[Views], state: dict[str, Any], message: str, *, step: int) -> Path:
        """Keeps the micro-batches and the state of a step that went wrong, one file a process.

        `saved = torch.load(path, weights_only=True)` and `Views(**saved["batches"][0])` bring the step back.
        """
        path = self.path / "failed" / f"step-{step:08d}{f'-rank{rank()}' if is_distributed() else ''}.pt"
        views = [{f.name: getattr(batch, f.name) for f in fields(batch)} for batch in batches]
        _save({"step": step, "message": message, "batches": views, "state": state}, path)
        return path

    def note_skipped(self, bad: Mapping[str, str]) -> None:
        """Adds unreadable files to skipped.txt, each path once, whichever processes meet it and however often.

        Args:
            bad: reason by path. Tabs and line ends in a path are written as \\t, \\n and \\r.
        """
        new = {path: reason for path, reason in bad.items() if path not in self._noted}
        if not new:
            return
        self._noted.update(new)
        old = self._skipped.read_bytes().decode("utf-8", "surrogateescape") if self._skipped.exists() else ""
        known = {line.partition("\t")[0] for line in old.split("\n")}
        escaped = {path.translate({9: "\\t", 10: "\\n", 13: "\\r"}): reason for path, reason in new.items()}
        lines = [f"{path}\t{' '.join(reason.split())}\n" for path, reason in escaped.items() if path not in known]
        # Appended in one piece, for other processes append too.
        with clear_error(self._skipped), open(self._skipped, "a", encoding="utf-8", errors="surrogateescape") as file:
            file.write("".join(lines))


class _TensorBoard:
    """The event writer, made at the first record. Training goes on without it where TensorBoard is missing or fails."""

    def __init__(self, folder: Path) -> None:
        self.purge_step: int | None = None
        self._folder = folder
        self._writer: Any = None
        self._broken = False

    def add(self, row: Row) -> None:
        if self._broken:
            return
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter  # takes a second to import

                self._writer = SummaryWriter(str(self._folder), purge_step=self.purge_step, flush_secs=30)
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    self._writer.add_scalar(name, value, global_step=row["step"])
        except Exception as error:  # a missing package, a version that clashes, a full disk
            self._give_up(error)

    def close(self) -> None:
        if self._writer is not None and not self._broken:
            try:
                self._writer.close()
            except Exception as error:
                self._give_up(error)
            self._writer = None

    def _give_up(self, error: Exception) -> None:
        self._broken = True
        warnings.warn(f"no TensorBoard events ({error}); metrics.jsonl holds every number", stacklevel=4)


def _save(state: dict[str, Any], path: Path) -> None:
    with replacing(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            # On a full disk torch's own complaint, about positions in the archive, hides the cause.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _verify(path: Path) -> None:
    """Reads the whole archive against its checksums.

    Raises:
        zipfile.BadZipFile, OSError: it is incomplete or damaged.
    """
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} is damaged")


def _step_of(path: Path) -> int:
    match = _CHECKPOINT.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _parse(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "step" in row else None
