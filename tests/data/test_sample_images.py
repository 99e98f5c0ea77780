"""Built-in photographs: made once, complete or not at all, with no held-out scene in the training tiles."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch.data import sample_images as samples
from selfpatch.data.decode.pillow import read_image
from selfpatch.data.sample_images import HELD_OUT, TILE, TRAINING, sample_photographs
from selfpatch.data.sources.index import ImageIndex


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_photographs(tmp_path_factory.mktemp("cache"))


def test_a_few_hundred_tiles_of_different_scenes(folder: Path) -> None:
    training, held_out = ImageIndex.open(folder / "training"), ImageIndex.open(folder / "held_out")
    assert 200 < len(training) < 1000
    assert 32 <= len(held_out) < len(training) / 4
    scenes = [{index.path(i).name.rsplit("-", 1)[0] for i in range(len(index))} for index in (training, held_out)]
    assert scenes == [{Path(name).stem for name in names} for names in (TRAINING, HELD_OUT)]
    assert not {name.split("_")[0] for name in scenes[0]} & {name.split("_")[0] for name in scenes[1]}
    assert training.classes == held_out.classes == ()


def test_tiles_are_pieces_of_the_photographs(folder: Path) -> None:
    assert all(Image.open(file).size == (TILE, TILE) for file in folder.rglob("*.jpg"))
    whole = np.asarray(read_image(samples.source_folder() / "coins.png")).astype(float)
    last = sorted((folder / "training").glob("coins-*"))[-1]  # full resolution, lower right corner
    difference = np.abs(np.asarray(read_image(last)) - whole[-TILE:, -TILE:])
    assert difference.mean() < 3


def test_made_once_and_never_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "TRAINING", ("coins.png", "not there.png"))
    with pytest.raises(ValueError, match="no photograph"):
        sample_photographs(tmp_path)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(samples, "TRAINING", ("coins.png",))
    folder = sample_photographs(tmp_path)
    times = {file: file.stat().st_mtime_ns for file in folder.rglob("*")}
    assert sample_photographs(tmp_path) == folder
    assert {file: file.stat().st_mtime_ns for file in folder.rglob("*")} == times
    assert list(tmp_path.iterdir()) == [folder]


def test_another_process_may_be_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "TRAINING", ("coins.png",))

    def interfere(*_: object) -> None:  # while this one cuts tiles, another one finishes
        monkeypatch.undo()
        (tmp_path / samples.FOLDER / "training").mkdir(parents=True)
        (tmp_path / samples.FOLDER / "training" / "theirs.jpg").touch()

    monkeypatch.setattr(samples, "_write_tiles", interfere)
    folder = sample_photographs(tmp_path)
    assert (folder / "training" / "theirs.jpg").exists()
    assert list(tmp_path.iterdir()) == [folder]


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="set XDG_CACHE_HOME"):
        sample_photographs(tmp_path / "file" / "cache")


def test_nothing_is_downloaded_and_scikit_image_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "socket", None)
    monkeypatch.setattr(samples, "TRAINING", ("coins.png",))
    sample_photographs(tmp_path)
    code = "import sys, selfpatch.data.sample_images as s; s.source_folder(); sys.exit('skimage' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
