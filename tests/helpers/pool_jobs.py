"""Jobs for a pool of worker processes, which import nothing heavy, so that the processes start fast."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def execute(job: str, slot: Path) -> list[str]:
    """Do what the job's name says; a slot is a folder to leave a mark in."""
    word, _, rest = job.partition(" ")
    (slot / job).write_text(str(os.getpid()))
    if word == "sleep":
        time.sleep(float(rest))
    elif word == "fail":
        return [f"{rest} failed"]
    elif word == "refuse":
        raise ValueError("this cannot be")
    elif word == "crash":
        raise KeyError("a mistake\nof several lines")
    elif word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return []
