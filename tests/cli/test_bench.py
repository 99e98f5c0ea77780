"""`selfpatch bench` finds the benchmarks of a source checkout."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from selfpatch.cli import bench
from selfpatch.cli.main import main

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The package as from a wheel, and a module path of the test's own."""
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "site-packages" / "selfpatch" / "cli" / "bench.py"))
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.mark.usefixtures("installed")
def test_an_installed_package_says_where_the_benchmarks_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench"]) == 2
    assert "the benchmarks are not installed with selfpatch; clone its repository and" in capsys.readouterr().err


@pytest.mark.usefixtures("installed")
def test_an_installed_package_finds_the_benchmarks_of_the_checkout_it_is_called_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(ROOT)
    bench._find_benchmarks()
    assert Path(sys.path[0]) == ROOT


def test_a_package_installed_in_place_finds_them_from_any_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(bench, "__file__", str(ROOT / "src" / "selfpatch" / "cli" / "bench.py"))
    bench._find_benchmarks()
    assert Path(sys.path[0]) == ROOT


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "speed"]) == 2
    assert (
        "there is no benchmark 'speed'; use some of: loader, step, end_to_end, ops, davis, scaling"
        in capsys.readouterr().err
    )
