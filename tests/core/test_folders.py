"""Entries of folders without what systems leave in them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from selfpatch.core.folders import files_below, stems_in, subfolders, visible_entries, walk

LITTERED = (
    "._a.jpg", ".hidden/b.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "__MACOSX/a.jpg", "Thumbs.db", "desktop.ini",
    "@eaDir/a.jpg/thumb.jpg", ".DS_Store", "sub/._c.JPG", "sub/Thumbs.db",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "sub/c.JPG", "sub/deep/d.png", "notes.txt", *LITTERED):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_litter_is_passed_over_at_every_depth(folder: Path) -> None:
    assert [path.name for path in visible_entries(folder)] == ["a.jpg", "notes.txt", "sub"]
    assert [path.name for path in subfolders(folder)] == ["sub"]
    assert (stems_in(folder, ".jpg"), stems_in(folder / "none", ".jpg")) == (["a"], [])
    found = files_below(folder, (".jpg", ".png"))
    assert [path.relative_to(folder).as_posix() for path in found] == ["a.jpg", "sub/c.JPG", "sub/deep/d.png"]


def test_links_are_followed_once_and_loops_end(folder: Path) -> None:
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "a link").symlink_to(folder / "sub" / "deep")
    (folder / "loop.jpg").symlink_to(folder / "loop.jpg")
    assert [name for name, *_ in walk(str(folder))] == ["", "sub", "sub/deep"]
    assert (folder / "loop.jpg") in files_below(folder, (".jpg",))  # unreadable, and reported when it is read


def test_pipes_are_no_files_and_broken_links_are(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jpg")
    (folder / "linked pipe.jpg").symlink_to(folder / "pipe.jpg")
    (folder / "broken.jpg").symlink_to(folder / "gone.jpg")
    assert next(walk(str(folder)))[2] == ["a.jpg", "broken.jpg", "notes.txt"]


def test_a_folder_that_is_removed_meanwhile_is_passed_over(folder: Path) -> None:
    walked = walk(str(folder))
    next(walked)
    shutil.rmtree(folder / "sub")
    assert list(walked) == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    for look in (visible_entries, subfolders, lambda folder: files_below(folder, (".jpg",))):
        with pytest.raises(ValueError, match=r"cannot look through .*none: No such file or directory"):
            look(tmp_path / "none")
