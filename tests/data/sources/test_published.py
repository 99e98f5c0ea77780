"""The index next to prepared shards: read in place of their headers, and refused if anything does not fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from selfpatch.data.sources import scan
from selfpatch.data.sources.index import ImageIndex
from selfpatch.data.sources.published import NAME, parse, publish
from selfpatch.data.sources.scan import search
from tests.helpers.shard_files import write_shard


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    for number in range(3):
        write_shard(folder / f"{number}.tar", {f"{i}.jpg": b"x" * i for i in range(1, 4 + number)})
    publish(folder, search(folder)[0], {f"{n}.tar": (folder / f"{n}.tar").stat().st_size for n in range(3)})
    return folder


def names(folder: Path) -> list[str]:
    index = ImageIndex.open(folder, folder.parent / "cache")
    return [index.name(i) for i in range(len(index))]


def test_no_header_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [f"{number}.tar/{i}.jpg" for number in range(3) for i in range(1, 4 + number)]
    monkeypatch.setattr(scan, "images_in", None)
    index = ImageIndex.open(folder, folder.parent / "cache")
    assert [index.name(i) for i in range(len(index))] == expected
    assert index.file(1).read() == b"xx"  # type: ignore[union-attr]


@pytest.mark.parametrize("change", ["another", "gone", "changed", "damaged"])
def test_an_index_of_other_shards_is_passed_over(folder: Path, change: str) -> None:
    if change == "another":
        write_shard(folder / "9.tar", {"new.jpg": b"1"})
    elif change == "gone":
        (folder / "2.tar").unlink()
    elif change == "changed":
        write_shard(folder / "2.tar", {f"{i}.jpg": b"x" * 20000 for i in range(3)})
    else:
        (folder / NAME).write_bytes((folder / NAME).read_bytes()[:-100])
    found = names(folder)
    (folder / NAME).unlink()
    assert found == names(folder)


def test_shards_outside_of_the_folder_are_never_opened(folder: Path, tmp_path: Path) -> None:
    with np.load(folder / NAME) as stored:
        arrays = dict(stored)
    np.savez(folder / NAME, **arrays | {"shards": np.frombuffer(b'{"../0.tar": 1}', np.uint8)})
    with pytest.raises(ValueError, match="a shard lies outside of its folder; make it again"):
        parse((folder / NAME).read_bytes(), NAME)
    # The names of the images themselves lead elsewhere: `../tar/...` in place of `0.tar/...`
    characters = arrays["characters"].copy()
    characters[:5] = np.frombuffer(b"../xx", np.uint8)
    np.savez(folder / NAME, **arrays | {"characters": characters})
    index = ImageIndex.open(folder, tmp_path / "cache2")
    with pytest.raises(ValueError, match=r"which leads out of its folder"):
        index.file(0)


@pytest.mark.parametrize(
    "extents", [np.zeros((0, 3), np.int64), np.zeros((12, 3), np.int64), np.full((12, 3), 99, np.int64)]
)
def test_images_outside_of_the_shards_are_refused(folder: Path, extents: np.ndarray) -> None:
    """Plain files may have any path, also an absolute one."""
    with np.load(folder / NAME) as stored:
        arrays = dict(stored)
    np.savez(folder / NAME, **arrays | {"extents": extents})
    with pytest.raises(ValueError, match="an image lies in no shard; make it again"):
        parse((folder / NAME).read_bytes(), NAME)


def test_a_page_in_place_of_an_index() -> None:
    with pytest.raises(ValueError, match=r"cannot read .*npz: it is no index; make it again"):
        parse(b"<html>log in</html>", NAME)
