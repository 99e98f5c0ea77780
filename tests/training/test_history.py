"""The history of a run: one entry for its start and for each resume."""

from __future__ import annotations

from pathlib import Path

import torch

from selfpatch.core.command_line import running
from selfpatch.training.history import FILE, read_history, record_end, record_start


def test_the_first_command_and_each_resume_are_kept(tmp_path: Path) -> None:
    assert read_history(tmp_path) == []
    for command in (["pretrain", "--data", "my photos"], ["resume", "run"]):
        with running(command):
            record_start(tmp_path, torch.device("cpu"))
    record_end(tmp_path)
    first, second = read_history(tmp_path)
    assert (first["command"], second["command"]) == ("selfpatch pretrain --data 'my photos'", "selfpatch resume run")
    assert first["ended"] is None, "it was killed"
    assert second["ended"] is not None
    assert first["started"] <= second["started"] <= second["ended"]
    assert first["versions"].keys() >= {"torch", "selfpatch"}


def test_a_damaged_history_begins_anew(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('[{"command": 5}]')
    assert read_history(tmp_path) == []
    record_end(tmp_path)
    record_start(tmp_path, torch.device("cpu"))
    assert len(read_history(tmp_path)) == 1
