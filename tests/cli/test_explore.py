"""`selfpatch explore`: image files, several networks, runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import selfpatch
from selfpatch.cli.main import main
from tests.helpers.colour_encoder import ColourEncoder
from tests.visualization.explorer.conftest import data_of

SMALL = "--resolution 48 --device cpu"


def names(page: Path, part: str) -> list[str]:
    return [entry["name"] for entry in data_of(page)[part]]


def test_files_and_two_networks(capsys: pytest.CaptureFixture[str], run: Path, photos: Path, tmp_path: Path) -> None:
    images, page = [photos / "cat" / "000.png", photos / "dog" / "000.png"], tmp_path / "new" / "page.html"
    weights = f"--weights {run} --weights baseline:raw-patch:16"
    assert main(f"explore {weights} {images[0]} {images[1]} --out {page} {SMALL} --debias 2".split()) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(page)
    assert names(page, "images") == ["cat/000.png", "dog/000.png"]
    assert names(page, "networks") == ["run", "baseline:raw-patch:16"]


def test_a_run_before_and_after(run: Path, tmp_path: Path) -> None:
    """Of two checkpoints at the end, the first one does not show the beginning."""
    page = tmp_path / "page.html"
    assert main(f"explore {run} --out {page} {SMALL} --limit 2".split()) == 0
    assert names(page, "networks")[0] == "untrained"
    assert names(page, "networks")[1].startswith("step ")
    assert len(names(page, "images")) == 2
    assert data_of(page)["title"] == "Held-out images of run"


def test_a_run_with_an_early_checkpoint(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    newest = max((copy / "checkpoints").glob("step-*.pt"))
    for path in (copy / "checkpoints").glob("step-*.pt"):
        if path != newest:
            path.unlink()
    # Files that are not of the newest step are read by name alone.
    step = int(newest.stem.split("-")[1])
    shutil.copy(newest, newest.with_name(f"step-{step // 2:08d}.pt"))
    assert main(f"explore {copy} --out {tmp_path / 'page.html'} {SMALL} --limit 1".split()) == 0
    assert names(tmp_path / "page.html", "networks") == [f"step {step // 2}", f"step {step}"]


def test_held_out_images_of_a_run_with_other_networks(run: Path, tmp_path: Path) -> None:
    page = selfpatch.explore({"colours": ColourEncoder()}, run, tmp_path / "page.html", resolution=48, limit=1)
    assert names(page, "networks") == ["colours"]
    assert names(selfpatch.explore(ColourEncoder(), run, page, resolution=48, limit=1), "networks") == ["ColourEncoder"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "no image was named"),
        ("{photo}", "no weights were named"),
        ("--weights {run} {photos}", "is a folder; name image files"),
        ("--weights {run} {photo} --resolution 2", "resolution 2 is below one patch"),
        ("--weights {run} {photo} --megabytes 0.001", "megabytes is 0.001"),
        ("--weights {run} {photo} --out {photos}", "is a folder; name an HTML file"),
    ],
)
def test_wrong_input(capsys: pytest.CaptureFixture[str], run: Path, photos: Path, words: str, sentence: str) -> None:
    words = words.format(run=run, photos=photos, photo=photos / "cat" / "000.png")
    assert main(["explore", *words.split(), "--device", "cpu"]) == 2
    assert sentence in capsys.readouterr().err
