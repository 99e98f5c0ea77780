"""Stamps of images: sizes and times, or hashes, of files and of members of shards; a missing file has none."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from selfpatch.data.sources import stamps as module
from selfpatch.data.sources.index import ImageIndex


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five files, one of them in a shard with two members."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for i, name in enumerate(("a.jpg", "sub/b.jpg", "c.jpg")):
        (folder / name).write_bytes(b"x" * (10 + i))
        os.utime(folder / name, ns=(0, 10**18 + i))
    with tarfile.open(folder / "s.tar", "w") as tar:
        for name in ("a.jpg", "c.jpg"):
            tar.add(folder / name, name)
    os.utime(folder / "s.tar", ns=(0, 10**18 + 9))
    return folder


def by_name(folder: Path, **options: bool) -> dict[str, list[int]]:
    index = ImageIndex.open(folder, folder.parent / "cache")
    return {index.name(i): stamp for i, stamp in enumerate(index.stamps(**options).tolist())}


def test_sizes_and_times(folder: Path) -> None:
    assert by_name(folder) == {
        "a.jpg": [10, 10**18],
        "c.jpg": [12, 10**18 + 2],
        "sub/b.jpg": [11, 10**18 + 1],
        "s.tar/a.jpg": [10, 10**18 + 9],
        "s.tar/c.jpg": [12, 10**18 + 9],
    }


def test_hashes_tell_the_content_and_nothing_else(folder: Path) -> None:
    before = by_name(folder, content=True)
    assert before["a.jpg"] == before["s.tar/a.jpg"]
    assert len({*map(tuple, before.values())}) == 3
    os.utime(folder / "a.jpg", ns=(0, 5))
    assert by_name(folder, content=True) == before
    (folder / "a.jpg").write_bytes(b"y" * 10)
    assert [name for name, stamp in by_name(folder, content=True).items() if stamp != before[name]] == ["a.jpg"]


@pytest.mark.parametrize("content", [False, True])
def test_missing_files_and_more_images_than_a_chunk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, content: bool
) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)
    index = ImageIndex(folder, [b"a.jpg", b"gone.jpg", b"c.jpg", b"sub/b.jpg", b"a.jpg"])
    stamps = index.stamps(content=content)
    assert stamps.dtype == np.int64
    assert stamps[:, 0].tolist() == [10, -1, 12, 11, 10]
    assert stamps[1].tolist() == [-1, -1]
    np.testing.assert_array_equal(stamps[0], stamps[4])


def test_a_pipe_is_not_read(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jpg")
    assert ImageIndex(folder, [b"pipe.jpg"]).stamps(content=True).tolist() == [[-1, -1]]
