"""Comparison of instruction sets: processes take turns in both environments."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

from benchmarks import instruction_sets
from benchmarks.instruction_sets import AVX2, InstructionSetsConfig, compare


def test_environments_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess:
        restricted = env | AVX2 == env
        seen.append(restricted)
        assert command[-2:] == ["--data", "photos"]
        times = {"step": 2.0, "loader": 1.5} if restricted else {"step": 1.0, "loader": 1.0}
        said = json.dumps({**times, "auto is bfloat16": float(not restricted)})
        return subprocess.CompletedProcess(command, 0, f"a warning\n{said}\n")

    for name in AVX2:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(instruction_sets.subprocess, "run", run)
    timings, chosen = compare(InstructionSetsConfig(data="photos", rounds=2))
    assert seen == [True, False] * 2
    assert [timing.speedup("all instructions")[0] for timing in timings] == [2.0, 1.5]
    assert chosen == {"AVX2": False, "all instructions": True}
    assert not AVX2.keys() & os.environ.keys()
