"""Fixtures of the tests of benchmarks."""

from __future__ import annotations

import pytest

from benchmarks import timing


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the collection of garbage before each timed call, which is slow amid the objects of a session."""
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)
