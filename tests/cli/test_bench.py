"""`selfpatch bench` finds the benchmarks of a source checkout."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from selfpatch.cli import bench
from selfpatch.cli.main import main


def hide_benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    hidden = {"benchmarks": None}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: hidden[name] if name in hidden else real(name))


def test_an_installed_package_says_where_the_benchmarks_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    hide_benchmarks(monkeypatch)
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "site-packages" / "selfpatch" / "cli" / "bench.py"))
    assert main(["bench"]) == 2
    assert "the benchmarks are not installed with selfpatch; clone its repository and" in capsys.readouterr().err


def test_a_checkout_is_found_from_any_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_benchmarks(monkeypatch)
    monkeypatch.setattr(sys, "path", [])
    bench._find_benchmarks()
    assert (Path(sys.path[-1]) / "benchmarks" / "__init__.py").is_file()


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "speed"]) == 2
    assert "there is no benchmark 'speed'; use some of: loader, step, ops, davis, scaling" in capsys.readouterr().err
