"""Numbers that torchrun announces."""

from __future__ import annotations

import pytest

from selfpatch.core.torchrun import announced_rank, announced_world_size


def test_one_process_is_assumed_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (announced_rank(), announced_world_size()) == (0, 1)
    monkeypatch.setenv("RANK", "3")
    assert announced_rank() == 0, "some schedulers number the machines, and a single process has to say what it does"
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert (announced_rank(), announced_world_size()) == (3, 8)
