"""Names in prepared shards, and records of complete ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from selfpatch.data.prepare.convert import PreparedImage
from selfpatch.data.prepare.shards import ShardWriter, finished_shards, member_name
from selfpatch.data.sources.shards import shard_images

NOTHING = np.zeros(2, np.uint64)


@pytest.mark.parametrize(
    ("name", "jpeg", "expected"),
    [
        ("dogs/1.JPEG", True, "dogs/1.JPEG"),
        ("dogs/1.png", True, "dogs/1.png.jpg"),
        ("dogs/1.png", False, "dogs/1.png"),
        ("a/train-0.tar/dogs/1.jpg", False, "a/dogs/1.jpg"),
        ("../../other/1.jpg", False, "other/1.jpg"),
        ("C:\\photos\\1.jpg", False, "photos/1.jpg"),
        ("x/.hidden/..jpg", False, "x/hidden/jpg"),
        ("..", True, "image.jpg"),
    ],
)
def test_names_stay_in_the_shard_and_keep_their_class(name: str, jpeg: bool, expected: str) -> None:
    assert member_name(name, jpeg=jpeg) == expected


def write(folder: Path, number: int, *names: str) -> None:
    with ShardWriter(folder, number) as shard:
        for index, name in enumerate(names):
            shard.add(index, name, PreparedImage(name.encode(), False, NOTHING))
        shard.close(len(names))


def test_equal_names_become_different_ones(tmp_path: Path) -> None:
    write(tmp_path, 0, "1.tar/a.jpg", "2.tar/a.jpg", "a.1.jpg", "3.tar/a.jpg", "4.tar/a.1.jpg")
    (record,) = finished_shards(tmp_path)
    assert record.names == ["a.jpg", "a.1.jpg", "a.1.2.jpg", "a.3.jpg", "a.1.4.jpg"]
    assert set(shard_images(str(tmp_path / "00000.tar"), lambda name: True)) == set(record.names)


def test_records_end_at_the_first_shard_that_is_missing_or_damaged(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path, number, "a.jpg")
    assert len([*finished_shards(tmp_path)]) == 3
    (tmp_path / "00001.tar").write_bytes(b"cut")
    assert len([*finished_shards(tmp_path)]) == 1
    (tmp_path / ".records" / "00000.tar.npz").write_bytes(b"damaged")
    assert not [*finished_shards(tmp_path)]


def test_a_shard_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AttributeError), ShardWriter(tmp_path, 0) as shard:
        shard.add(0, "a.jpg", None)  # type: ignore[arg-type]
    assert not [*tmp_path.iterdir()]
