"""Benchmark of the objectives: each has its three steps, and they train."""

from __future__ import annotations

import pytest
import torch

from benchmarks.objectives import timings
from benchmarks.step import StepBench
from selfpatch.methods.registry import OBJECTIVES
from tests.helpers.tiny import tiny_config


def test_each_objective_is_timed_beside_dino_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {*OBJECTIVES} - {"sere", "paka", "gram"}:
        monkeypatch.delitem(OBJECTIVES, name)
    measured = list(timings(tiny_config(), torch.device("cpu"), seconds=0.01, memory=False))
    assert [list(timing.seconds) for timing in measured] == [
        ["DINO", f"DINO + {name}", f"{name} alone"] for name in ("sere", "paka", "gram")
    ]
    assert all(seconds > 0 for timing in measured for times in timing.seconds.values() for seconds in times)


@pytest.mark.parametrize("objective", ["sere", "paka"])
def test_the_crops_are_those_that_the_objective_needs(objective: str) -> None:
    bench = StepBench(tiny_config(method="none", objective=objective), torch.device("cpu"))
    views = bench.views
    pairs = (views.clean_crops, views.contained_crops, views.pair_boxes)
    if objective == "paka":
        assert views.num_global == 0
        assert views.local_crops is None
        assert [len(crops) for crops in pairs if crops is not None] == [1, 2, 3]
    else:
        assert views.num_global == 2
        assert views.local_crops is not None
        assert pairs == (None, None, None)
