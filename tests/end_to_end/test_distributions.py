"""A wheel and a source distribution are complete, and run from outside of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from selfpatch.core.version import VERSION

REPOSITORY = Path(__file__).parents[2]

BUILD = "from setuptools import build_meta; build_meta.build_{}('.')"


def build(kind: str, folder: Path) -> Path:
    """Build a distribution of a folder, without isolation and so without a network, and return its file."""
    subprocess.run([sys.executable, "-c", BUILD.format(kind)], cwd=folder, check=True, capture_output=True, timeout=300)
    (found,) = folder.glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return found


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked source distribution."""
    source, unpacked = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(REPOSITORY / "src", source / "src", ignore=ignored)
    with tarfile.open(build("sdist", source)) as archive:
        archive.extractall(unpacked, filter="data")
    return unpacked / f"selfpatch-{VERSION}"


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, built from the source distribution."""
    unpacked = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build("wheel", sdist)) as archive:
        archive.extractall(unpacked)
    return unpacked


def files_below(folder: Path) -> set[str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in files if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_a_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    packaged = files_below(wheel / "selfpatch")
    assert packaged == files_below(REPOSITORY / "src" / "selfpatch")
    for file in ("recipes/small-1k.yaml", "suites/dense.yaml", "visualization/templates/report.html.jinja", "py.typed"):
        assert file in packaged
    (information,) = wheel.glob("selfpatch-*.dist-info")
    assert "selfpatch = selfpatch.cli.main:main" in (information / "entry_points.txt").read_text()
    assert f"Version: {VERSION}\n" in (information / "METADATA").read_text()
    assert (information / "licenses" / "LICENSE").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [("--version", VERSION), ("recipes small-1k", "objective: selfpatch"), ("evaluate davis --presets", "dinov3")],
)
def test_a_wheel_runs_from_anywhere(arguments: str, said: str, wheel: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "selfpatch", *arguments.split()],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(wheel)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert said in done.stdout


@pytest.mark.slow
def test_a_wheel_is_what_runs(wheel: Path, tmp_path: Path) -> None:
    code = "import selfpatch, selfpatch.cli.evaluate; print(selfpatch.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(wheel)},
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert Path(done.stdout.strip()).is_relative_to(wheel)
