"""Images that change between the stop and the resume of a run are counted, named, listed, and refused if asked."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from selfpatch.api.pretrain import pretrain, resume
from selfpatch.checkpoints.run_dir import RunDirectory
from selfpatch.config.sections import Fingerprint
from selfpatch.data.sources.index import ImageIndex
from selfpatch.training.changed_images import changed_images, record_images
from tests.helpers.command_line import write_photos
from tests.helpers.tiny import tiny_config


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six files of ten bytes each."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        (folder / f"{i}.jpg").write_bytes(b"x" * 10)
        os.utime(folder / f"{i}.jpg", ns=(0, 10**18))
    return folder


def begun(tmp_path: Path, photos: Path, fingerprint: Fingerprint) -> tuple[RunDirectory, ImageIndex]:
    run = RunDirectory.create(tmp_path / "run", {})
    index = ImageIndex.open(photos, tmp_path / "cache")
    record_images(run, index, fingerprint)
    return run, index


def change(photos: Path) -> None:
    """Give one file another time, one another content of the same size and time, and one another size; remove one."""
    os.utime(photos / "1.jpg", ns=(0, 5))
    (photos / "2.jpg").write_bytes(b"y" * 10)
    os.utime(photos / "2.jpg", ns=(0, 10**18))
    (photos / "3.jpg").write_bytes(b"z" * 11)
    (photos / "4.jpg").unlink()


@pytest.mark.parametrize("fingerprint", ["size_and_time", "content", "none"])
def test_nothing_is_said_where_nothing_changed(tmp_path: Path, photos: Path, fingerprint: Fingerprint) -> None:
    run, index = begun(tmp_path, photos, fingerprint)
    assert changed_images(run, index) is None
    assert not (run.path / "changed.txt").exists()


@pytest.mark.parametrize(
    ("fingerprint", "counts", "names", "listed"),
    [
        (
            "size_and_time",
            r"3 of 6 images .* \(1 missing, 1 in size, 1 in modification time alone\)",
            "1.jpg, 3.jpg, 4.jpg;",
            "1.jpg\ttime\n3.jpg\tsize\n4.jpg\tmissing\n",
        ),
        (
            "content",
            r"3 of 6 images .* \(1 missing, 1 in size, 1 in content\)",
            "2.jpg, 3.jpg, 4.jpg;",
            "2.jpg\tcontent\n3.jpg\tsize\n4.jpg\tmissing\n",
        ),
    ],
)
def test_changes_are_said_and_listed(
    tmp_path: Path, photos: Path, fingerprint: Fingerprint, counts: str, names: str, listed: str
) -> None:
    run, index = begun(tmp_path, photos, fingerprint)
    change(photos)
    with pytest.raises(ValueError, match=rf"^{counts}: {names} put them back, or resume without --refuse-changed"):
        changed_images(run, index, refuse=True)
    sentence = changed_images(run, index)
    assert sentence is not None
    assert sentence.endswith(f": {names} the run goes on with them, and changed.txt there lists all")
    assert (run.path / "changed.txt").read_text() == listed


def test_only_the_first_few_are_named(tmp_path: Path, photos: Path) -> None:
    run, index = begun(tmp_path, photos, "size_and_time")
    for file in photos.iterdir():
        os.utime(file, ns=(0, 7))
    assert "6 of 6 images" in (sentence := str(changed_images(run, index)))
    assert "0.jpg, 1.jpg, 2.jpg, ...;" in sentence
    assert len((run.path / "changed.txt").read_text().splitlines()) == 6


@pytest.mark.parametrize("damage", ["missing", "text", "truncated", "of other images"])
def test_damaged_stamps_say_nothing_and_are_refused_if_asked(tmp_path: Path, photos: Path, damage: str) -> None:
    run, index = begun(tmp_path, photos, "size_and_time")
    file = run.path / "images.npz"
    if damage == "missing":
        file.unlink()
    elif damage == "of other images":
        record_images(run, ImageIndex(photos, [b"1.jpg"]), "size_and_time")
    else:
        file.write_bytes(b"text" if damage == "text" else file.read_bytes()[:100])
    assert changed_images(run, index) is None
    with pytest.raises(ValueError, match=r"no readable images\.npz, so that changed images cannot be told"):
        changed_images(run, index, refuse=True)


def test_any_damage_of_the_stamps_is_survived(tmp_path: Path, photos: Path) -> None:
    run, index = begun(tmp_path, photos, "size_and_time")
    file, rng = run.path / "images.npz", np.random.default_rng(0)
    whole = file.read_bytes()
    outcomes = set()
    for _ in range(100):
        noisy = bytearray(whole)
        for position in rng.integers(len(noisy), size=4):
            noisy[position] = rng.integers(256)
        file.write_bytes(noisy)
        outcomes.add(changed_images(run, index) is None)
    assert True in outcomes


@pytest.mark.slow
def test_a_resumed_run_says_what_changed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_photos(tmp_path / "photos", 10, size=32)
    config = tiny_config(data=str(photos), out=str(tmp_path / "run"), epochs=1, device="cpu")
    pretrain(config.override({"loader": {"held_out": 0, "workers": 0}, "watch": {"picture_images": 0}}))
    assert "changed after" not in capsys.readouterr().out
    resume(tmp_path / "run")
    assert "changed after" not in capsys.readouterr().out
    (photos / "003.png").write_bytes((photos / "004.png").read_bytes())
    resume(tmp_path / "run")
    assert "warning: 1 of 10 images changed after" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"003\.png; put them back, or resume without --refuse-changed"):
        resume(tmp_path / "run", refuse_changed=True)
