"""Sources behind a URL: names, order, classes and content of local ones, with few requests."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import selfpatch
from selfpatch.data.sources import published, remote
from selfpatch.data.sources.image_files import opened
from selfpatch.data.sources.index import ImageIndex
from tests.helpers.range_server import RangeServer, serving
from tests.helpers.shard_files import photo, settle, write_shard

pytest.importorskip("aiohttp")

NAMES = ["dog/1.jpg", "dog/a b.jpg", "cat/é.jpg", "cat/100%.jpg", "cat/deep/2.jpg"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    images = {name: photo(i, size=(20, 16)) for i, name in enumerate(NAMES)}
    for name, content in images.items():
        (root / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "folder" / name).write_bytes(content)
    (root / "folder" / ".hidden.jpg").touch()
    (root / "folder" / "readme.md").touch()
    for number in range(2):
        write_shard(root / "shards" / f"{number}.tar", dict(list(images.items())[number::2]))
    (root / "zips").mkdir()
    with zipfile.ZipFile(root / "zips" / "all.zip", "w") as archive:
        for name, content in images.items():
            archive.writestr(name, content)
    (root / "list.txt").write_text("# chosen\nfolder/dog/1.jpg\nshards/1.tar\nfolder/cat/é.jpg\n", encoding="utf-8")
    selfpatch.prepare(root / "folder", root / "prepared", max_side=32, workers=0)
    (root / "empty").mkdir()
    settle(root)
    return root


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[RangeServer]:
    with serving(root) as started:
        yield started


@pytest.fixture(autouse=True)
def fresh(server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    server.requests.clear()


def contents(index: ImageIndex) -> dict[str, bytes]:
    found = {}
    for i in range(len(index)):
        with opened(index.file(i)) as stream:
            found[index.name(i)] = stream.read()
    return found


@pytest.mark.parametrize(
    "source", ["folder", "shards", "shards/0.tar", "zips", "zips/all.zip", "list.txt", "prepared", "prepared/00000.tar"]
)
def test_a_remote_source_is_the_local_one(root: Path, server: RangeServer, source: str) -> None:
    local, there = ImageIndex.open(root / source), ImageIndex.open(f"{server.url}/{source}")
    assert contents(there) == contents(local)
    assert [*contents(there)] == [*contents(local)]
    assert (there.fingerprint, there.classes) == (local.fingerprint, local.classes)


def test_a_server_that_fails_now_and_then_is_not_taken_for_an_empty_folder(
    root: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv(remote.PATIENCE_VARIABLE, "5")
    faults = iter(range(10**6))
    monkeypatch.setattr(server, "fault", lambda path, number: ("500", "truncated", None)[next(faults) % 3])
    for source in ("folder", "shards", "prepared", "list.txt"):
        assert ImageIndex.open(f"{server.url}/{source}").fingerprint == ImageIndex.open(root / source).fingerprint


def test_parquet(root: Path, server: RangeServer) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (root / "hub").mkdir()
    pq.write_table(pa.table({"image": [b"1", b"22"], "label": ["x", "y"]}), root / "hub" / "train.parquet")
    index = ImageIndex.open(f"{server.url}/hub")
    assert contents(index) == {"train.parquet/x/000000000": b"1", "train.parquet/y/000000001": b"22"}
    assert index.classes == ("x", "y")


def test_prepared_shards_need_a_request_for_the_index_and_one_for_each_image(server: RangeServer) -> None:
    index = ImageIndex.open(f"{server.url}/prepared")
    assert [(method, path) for method, path, _ in server.requests] == [
        ("HEAD", "/prepared/selfpatch-index.npz"),
        ("GET", "/prepared/selfpatch-index.npz"),
    ]
    assert len(contents(index)) == len(NAMES)
    assert [path for _, path, part in server.requests[2:] if part] == ["/prepared/00000.tar"] * len(NAMES)
    assert len(server.requests) == 2 + len(NAMES)
    contents(index)  # from the cache
    again = ImageIndex.open(f"{server.url}/prepared")
    assert contents(again) == contents(index)
    assert len(server.requests) == 3 + len(NAMES)


def test_a_changed_shard_is_noticed(root: Path, server: RangeServer) -> None:
    before = ImageIndex.open(f"{server.url}/shards")
    write_shard(root / "shards" / "1.tar", {"x.jpg": b"new"})
    os.utime(root / "shards" / "1.tar", ns=(0, 10**18))
    after = ImageIndex.open(f"{server.url}/shards")
    assert contents(after)["1.tar/x.jpg"] == b"new"
    changed = dict(zip(contents(before), before.stamps().tolist(), strict=True))
    now = dict(zip(contents(after), after.stamps().tolist(), strict=True))
    assert all(now[name] == changed[name] for name in now if name.startswith("0.tar"))


def test_content_stamps(root: Path, server: RangeServer) -> None:
    local, there = ImageIndex.open(root / "folder"), ImageIndex.open(f"{server.url}/folder")
    assert (there.stamps(content=True) == local.stamps(content=True)).all()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone", "there is no file or folder .*/gone; check the URL|no images in .*/gone"),
        ("gone.tar", r"there is no file or folder .*/gone\.tar; check the URL"),
        ("empty", "no images in .*/empty; files with these endings"),
        ("photos.tar.gz", r"photos\.tar\.gz is compressed"),
        ("evil.txt", r"evil\.txt names '\.\./\.\./etc/passwd\.jpg', which leads out of its folder"),
        ("absolute.txt", r"names '/etc/passwd\.jpg', which is an absolute path"),
    ],
)
def test_wrong_sources(root: Path, server: RangeServer, source: str, message: str) -> None:
    (root / "evil.txt").write_text("../../etc/passwd.jpg\n")
    (root / "absolute.txt").write_text("/etc/passwd.jpg\n")
    with pytest.raises(ValueError, match=message):
        ImageIndex.open(f"{server.url}/{source}")


def test_a_damaged_index_is_refused(root: Path, server: RangeServer) -> None:
    index = root / "prepared" / published.NAME
    content = index.read_bytes()
    try:
        index.write_bytes(content[: len(content) // 2])
        with pytest.raises(ValueError, match=r"cannot read .*selfpatch-index\.npz: .*; make it again with `selfpatch"):
            ImageIndex.open(f"{server.url}/prepared")
    finally:
        index.write_bytes(content)
