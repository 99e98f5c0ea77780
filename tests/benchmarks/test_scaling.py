"""Benchmark of scaling."""

from __future__ import annotations

from benchmarks.scaling import BASE, GROWN
from selfpatch.config.run import RunConfig


def test_every_grown_step_is_a_valid_configuration() -> None:
    for settings in GROWN.values():
        RunConfig().override(BASE).override(settings)
