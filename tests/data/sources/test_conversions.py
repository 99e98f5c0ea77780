"""Hints for files that hold images in a form that is not read."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfpatch.data.sources.index import ImageIndex
from selfpatch.data.sources.scan import NoImagesError
from tests.helpers.command_line import write_photos


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("trip.MP4", "trip.MP4 is a video; write its frames to files, e.g. with `ffmpeg -i"),
        ("data.mdb", "data.mdb is an LMDB database; write its images to files of a folder, or to a .tar shard"),
        ("a.arrow", "a.arrow is an Arrow file; save the table as .parquet"),
        ("a.heic", "a.heic is a photograph of a format that is not read; convert it to JPEG"),
        ("notes.md", "files with these endings are read: .jpg"),
    ],
)
def test_what_to_do_with_other_files(name: str, hint: str, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "er" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(b"\0")
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(NoImagesError) as caught:
        ImageIndex.open(tmp_path, tmp_path / "cache")
    assert hint in str(caught.value)
    if name != "notes.md":
        with pytest.raises(NoImagesError, match=f"no images in .*{name}; {name} is"):
            ImageIndex.open(file, tmp_path / "cache")


def test_images_beside_them_are_read(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    (photos / "clip.mp4").write_bytes(b"\0")
    assert len(ImageIndex.open(photos, tmp_path / "cache")) == 3


def test_files_of_another_source_of_a_list_are_no_hint(tmp_path: Path) -> None:
    videos, empty = write_photos(tmp_path / "photos" / "deep", 1).parent, tmp_path / "empty"
    (videos / "clip.mp4").write_bytes(b"\0")
    empty.mkdir()
    (tmp_path / "list.txt").write_text("photos\nempty\n")
    with pytest.raises(NoImagesError, match=r"no images in .*empty; files with these endings"):
        ImageIndex.open(tmp_path / "list.txt", tmp_path / "cache")
