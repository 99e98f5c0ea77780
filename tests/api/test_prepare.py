"""`selfpatch.prepare`: shards that a stopped call completes, and the lists next to them."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import selfpatch
from selfpatch.data.decode.pillow import read_image
from selfpatch.data.sources.index import ImageIndex
from tests.helpers.shard_files import photo

SETTINGS = {"max_side": 32, "shard_mb": 0.002, "workers": 0}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten large and two small photographs in two classes, a copy, and two damaged images."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(10):
        file = root / ("cat" if i % 2 else "dog") / f"{i}.{'png' if i == 3 else 'jpg'}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(photo(i, file.suffix[1:], (90, 70)))
    (root / "cat" / "small.png").write_bytes(photo(20, "png", (20, 20)))
    (root / "dog" / "copy.jpg").write_bytes(photo(2, "jpg", (120, 93)))
    (root / "cat" / "empty.jpg").touch()
    (root / "dog" / "cut.jpg").write_bytes(photo(1, "jpg", (90, 70))[:900])
    return root


@pytest.fixture(scope="module")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("out") / "shards"
    outcome = selfpatch.prepare(photos, folder, **SETTINGS)
    assert outcome._replace(megabytes=0) == (folder, 12, 11, 2, 1, outcome.shards, 0)
    assert outcome.shards > 2
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_shards_are_a_source_with_the_same_classes(photos: Path, shards: Path, tmp_path: Path) -> None:
    index = ImageIndex.open(shards, tmp_path)
    assert (len(index), index.classes) == (12, ("cat", "dog"))
    assert all(max(read_image(index.file(i)).size) <= 32 for i in range(12))
    names = {index.name(i).partition("/")[2] for i in range(12)}
    assert {"cat/3.png.jpg", "cat/small.png", "dog/0.jpg"} <= names


def test_damaged_images_and_near_duplicates_are_listed(shards: Path) -> None:
    damaged = (shards / "damaged.tsv").read_text().splitlines()[1:]
    assert [line.partition("\t")[0] for line in damaged] == ["cat/empty.jpg", "dog/cut.jpg"]
    assert "truncated" in damaged[1]
    (near,) = (shards / "near-duplicates.tsv").read_text().splitlines()[1:]
    later, earlier, distance = near.split("\t")
    assert {later.partition("/")[2], earlier.partition("/")[2]} == {"dog/copy.jpg", "dog/2.jpg"}
    assert int(distance) <= 4


def test_checksums(shards: Path) -> None:
    for line in (shards / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((shards / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("stop_after", [1, 7, 13])
def test_a_stopped_call_continues_to_the_same_files(
    photos: Path, shards: Path, tmp_path: Path, stop_after: int
) -> None:
    def stop(_: str, done: int, total: int) -> None:
        assert total == 14
        if done == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        selfpatch.prepare(photos, tmp_path / "out", **SETTINGS, progress=stop)
    (tmp_path / "out" / ".00000.tar.1.tmp").touch()  # what a killed process leaves
    finished = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in os.listdir(tmp_path / "out")}
    counts: list[int] = []
    selfpatch.prepare(photos, tmp_path / "out", **SETTINGS, progress=lambda _, done, total: counts.append(done))
    assert counts[-1] == 14
    assert counts[0] > 1 or stop_after == 1
    assert files(tmp_path / "out") == files(shards)
    kept = [n for n, t in finished.items() if n.endswith("0.tar") and t == (tmp_path / "out" / n).stat().st_mtime_ns]
    assert kept or stop_after == 1


def test_processes_give_the_same_files_and_a_complete_folder_is_left_alone(
    photos: Path, shards: Path, tmp_path: Path
) -> None:
    first = selfpatch.prepare(photos, tmp_path / "out", **SETTINGS | {"workers": 2})
    assert files(tmp_path / "out") == files(shards)
    assert selfpatch.prepare(photos, tmp_path / "out", **SETTINGS) == first
    with pytest.raises(ValueError, match=r"prepared from others, or in another way \(other quality\)"):
        selfpatch.prepare(photos, tmp_path / "out", **SETTINGS, quality=50)


def test_the_work_can_be_sent_to_processes_that_are_spawned_as_on_macos(
    photos: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def computed(load: Any, requests: Iterable[Any], workers: int) -> Iterator[Any]:
        yield from map(pickle.loads(pickle.dumps(load)), requests)

    monkeypatch.setattr("selfpatch.api.prepare.computed_ahead", computed)
    selfpatch.prepare(photos, tmp_path / "out", **SETTINGS)
    assert files(tmp_path / "out") == files(shards)


def test_a_folder_with_other_files_is_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match="is not empty; give a new folder"):
        selfpatch.prepare(photos, tmp_path)


def test_a_source_without_readable_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(ValueError, match=r"no image can be read \(1 tried\), e\.g\. a\.jpg: it is empty"):
        selfpatch.prepare(tmp_path / "photos", tmp_path / "out", workers=0)


def test_the_summary(shards: Path) -> None:
    summary = json.loads((shards / "prepared.json").read_text())
    assert (summary["images"], summary["resized"], summary["request"]["max_side"]) == (12, 11, 32)


@pytest.mark.parametrize("left", [".lock", ".records"])
def test_what_a_killed_process_or_a_full_disk_left_is_no_other_file(photos: Path, tmp_path: Path, left: str) -> None:
    (tmp_path / left).touch() if left == ".lock" else (tmp_path / left).mkdir()
    assert selfpatch.prepare(photos, tmp_path, max_side=32, workers=0, limit=1).images == 1


def test_small_images_of_a_parquet_file_get_an_ending(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"image": [photo(0, "png", (20, 20)), photo(1, "jpg", (20, 20))]}), tmp_path / "a.parquet")
    selfpatch.prepare(tmp_path / "a.parquet", tmp_path / "out", workers=0)
    index = ImageIndex.open(tmp_path / "out", tmp_path / "cache")
    assert [index.name(i) for i in range(2)] == ["00000.tar/000000000.png", "00000.tar/000000001.jpg"]
