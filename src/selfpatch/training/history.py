"""The history of a run, history.json: command, times, machine and versions of its start and of each resume."""

import datetime
import json
from pathlib import Path

import torch
from typing_extensions import TypedDict

from selfpatch.config.json_schema import check_json
from selfpatch.core import distributed
from selfpatch.core.atomic_io import write_atomically
from selfpatch.core.command_line import current_command
from selfpatch.core.machine import current_versions, device_name
from selfpatch.core.text_files import read_json

FILE = "history.json"


class Session(TypedDict):
    """One process, or one group of processes, that trained a run."""

    command: str
    started: str
    """Local time with its offset, in the format of ISO 8601."""
    ended: str | None
    """Time of the end; None while it trains, or if it was killed."""
    device: str
    processes: int
    versions: dict[str, str]


def record_start(folder: Path, device: torch.device) -> None:
    """Add a session to the history of a run; on the main process, as all functions here."""
    session = Session(
        command=current_command(), started=_now(), ended=None, device=device_name(device),
        processes=distributed.world_size(), versions=current_versions(),
    )  # fmt: skip
    _write(folder, [*read_history(folder), session])


def record_end(folder: Path) -> None:
    """Note the time at which the last session of a run has ended."""
    history = read_history(folder)
    if history:
        history[-1]["ended"] = _now()
        _write(folder, history)


def read_history(folder: Path) -> list[Session]:
    """Return the sessions of a run, the first one first; none if the file is missing or damaged."""
    path = folder / FILE
    try:
        return check_json(read_json(path), list[Session], str(path))
    except ValueError:
        return []


def _write(folder: Path, history: list[Session]) -> None:
    write_atomically(folder / FILE, json.dumps(history, indent=1) + "\n")


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
