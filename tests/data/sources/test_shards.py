"""Tar shards in the index: the images in them, their names, and damage, which never goes unnoticed."""

from __future__ import annotations

import gzip
import os
import pickle
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfpatch.data.sources.image_files import ShardMember
from selfpatch.data.sources.index import ImageIndex
from selfpatch.data.sources.shards import COMPRESSED
from tests.helpers.shard_files import settle, write_shard

FORMATS = (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
LONG = "/".join(["a folder with a long name, more than a header has room for"] * 5) + "/" + "é" * 100 + ".jpg"


def relative(index: ImageIndex) -> list[str]:
    return [os.path.relpath(index.path(i), index.root) for i in range(len(index))]


def contents(index: ImageIndex) -> dict[str, bytes]:
    """Return the bytes that readers would read, by name."""
    files = [index.file(i) for i in range(len(index))]
    return {
        name: f.read() if isinstance(f, ShardMember) else f.read_bytes()
        for name, f in zip(relative(index), files, strict=True)
    }


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


stems = st.text("aZ0 _é画-", min_size=1, max_size=90).filter(lambda s: s.strip() == s)
names = st.builds(
    lambda folders, stem, ending: "/".join([*folders, stem + ending]),
    st.lists(st.one_of(stems, stems.map(lambda s: f".{s}"), st.sampled_from(["__MACOSX", "@eaDir"])), max_size=3),
    st.one_of(stems, stems.map(lambda s: f"._{s}")),
    st.sampled_from([".jpg", ".JPEG", ".png", ".json", ".cls", ".jpg.txt", ""]),
)


@settings(max_examples=60)
@given(
    members=st.lists(st.tuples(names, st.binary(max_size=1500)), max_size=12),
    again=st.lists(st.integers(0, 11), max_size=3),
    format=st.sampled_from(FORMATS),
)
def test_a_shard_is_indexed_as_what_it_unpacks_to(
    members: list[tuple[str, bytes]], again: list[int], format: int
) -> None:
    """Names are arbitrary: nested, long, of other files than images, repeated, in any order."""
    folders = {f"{folder}/" for name, _ in members for folder in _parents(name)}
    members = [("first.jpg", b"there is one"), *(m for m in members if f"{m[0]}/" not in folders)]
    members += [(members[i][0], b"the last one counts") for i in again if i < len(members)]
    with tempfile.TemporaryDirectory() as temporary:
        shard, cache = write_shard(Path(temporary) / "a" / "s.tar", members, format), Path(temporary) / "cache"
        unpacked = Path(temporary) / "b" / "s.tar"
        with tarfile.open(shard) as tar:
            tar.extractall(unpacked, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
        expected, found = ImageIndex.open(unpacked.parent, cache), ImageIndex.open(shard.parent, cache)
        assert relative(found) == relative(expected)
        assert contents(found) == contents(expected)
        assert found.fingerprint == expected.fingerprint
        alone = ImageIndex.open(shard, cache)
        assert contents(alone) == contents(found)


def _parents(name: str) -> list[str]:
    parts = name.split("/")
    return ["/".join(parts[:i]) for i in range(1, len(parts))]


@pytest.mark.parametrize("format", FORMATS)
def test_long_names(tmp_path: Path, cache: Path, format: int) -> None:
    index = ImageIndex.open(write_shard(tmp_path / "s.tar", {LONG: b"long", "short.png": b"short"}, format), cache)
    assert contents(index) == {f"s.tar/{LONG}": b"long", "s.tar/short.png": b"short"}


def test_names_cannot_leave_the_shard(tmp_path: Path, cache: Path) -> None:
    members = {"./a.jpg": b"1", "/b.jpg": b"2", "x/../../../c.jpg": b"3", "//d//e.jpg": b"4", "./.f/g.jpg": b"5"}
    index = ImageIndex.open(write_shard(tmp_path / "s.tar", members), cache)
    assert contents(index) == {"s.tar/a.jpg": b"1", "s.tar/b.jpg": b"2", "s.tar/c.jpg": b"3", "s.tar/d/e.jpg": b"4"}


def test_links_within_a_shard(tmp_path: Path, cache: Path) -> None:
    """Hard links, which `tar` itself writes, are read; symbolic links, folders and devices are no images."""
    shard = write_shard(tmp_path / "s.tar", {"blob": b"content"})
    with tarfile.open(shard, "a:") as tar:
        for name, kind in [("hard.jpg", tarfile.LNKTYPE), ("soft.jpg", tarfile.SYMTYPE), ("dir.jpg", tarfile.DIRTYPE)]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "blob"
            tar.addfile(member)
    assert contents(ImageIndex.open(shard, cache)) == {"s.tar/hard.jpg": b"content"}


def test_a_folder_mixes_images_and_shards(tmp_path: Path, cache: Path) -> None:
    root = tmp_path / "photos"
    write_shard(root / "deep" / "b.tar", {"2.jpg": b"2", "1.jpg": b"1", "1.json": b"{}", "n.tar": b""})
    write_shard(root / "c.TAR", {"3.jpg": b"3"})
    write_shard(root / ".hidden.tar", {"4.jpg": b"4"})
    write_shard(root / "labels.tar", {"5.txt": b"5"})  # without images
    (root / "a.png").write_bytes(b"0")
    (root / "deep" / "z.png").write_bytes(b"6")
    (root / "d.tar.gz").write_bytes(gzip.compress(b"ignored"))
    (root / "link.tar").symlink_to(root / "c.TAR")
    index = ImageIndex.open(root, cache)
    order = ["a.png", "c.TAR/3.jpg", "deep/b.tar/1.jpg", "deep/b.tar/2.jpg", "deep/z.png", "link.tar/3.jpg"]
    assert relative(index) == order
    assert list(contents(index).values()) == [b"0", b"3", b"1", b"2", b"6", b"3"]
    assert isinstance(index.file(0), Path)
    assert str(index.file(1)) == str(index.path(1)) == f"{root}/c.TAR/3.jpg"
    with pytest.raises(IndexError):
        index.file(6)


def test_a_list_mixes_images_folders_and_shards(tmp_path: Path, cache: Path) -> None:
    write_shard(tmp_path / "shards" / "s.tar", {"b.jpg": b"b", "a.jpg": b"a"})
    (tmp_path / "folder" / "below").mkdir(parents=True)
    (tmp_path / "folder" / "below" / "c.jpg").write_bytes(b"c")
    write_shard(tmp_path / "folder" / "t.tar", {"d.jpg": b"d"})
    (tmp_path / "v1.tar").mkdir()
    (tmp_path / "v1.tar" / "e.png").write_bytes(b"e")
    file = tmp_path / "lists" / "all.txt"
    file.parent.mkdir()
    absolute = tmp_path / "shards" / "s.tar"
    (file.parent / "strange").touch()
    file.write_text(
        f"../missing.jpg\n../shards/s.tar\n# note\n../folder/\n../v1.tar\nstrange\n{absolute}\n../missing.jpg\n"
    )
    index = ImageIndex.open(file, cache)
    assert [str(index.path(i)).removeprefix(f"{file.parent}/") for i in range(len(index))] == [
        *("../missing.jpg", "../shards/s.tar/a.jpg", "../shards/s.tar/b.jpg", "../folder/below/c.jpg"),
        *("../folder/t.tar/d.jpg", "../v1.tar/e.png", "strange", f"{absolute}/a.jpg", f"{absolute}/b.jpg"),
        "../missing.jpg",
    ]
    members = [index.file(i) for i in (2, 4, 7)]
    assert [m.read() for m in members if isinstance(m, ShardMember)] == [b"b", b"d", b"a"]
    assert index.classes == ()


def test_lines_that_end_as_images_are_not_looked_at(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million lookups on a network drive would take minutes, also in a list that names a shard."""
    write_shard(tmp_path / "s.tar", {"1.jpg": b"1"})
    (tmp_path / "l.txt").write_text("\n".join([f"{i}.JPG" for i in range(1000)] + ["s.tar"]))
    looks, stat = [], os.stat
    monkeypatch.setattr(os, "stat", lambda path, **kw: (looks.append(str(path)), stat(path, **kw))[1])
    assert len(ImageIndex.open(tmp_path / "l.txt", cache)) == 1001
    assert not [path for path in looks if path.endswith(".JPG")]


@pytest.mark.parametrize(
    ("files", "classes"),
    [
        (["dog/a.tar/1.jpg", "cat/b.tar/2.jpg", "cat/3.jpg"], ["dog", "cat", "cat"]),
        (["a.tar/dog/1.jpg", "b.tar/cat/2.jpg", "b.tar/dog/3.jpg"], ["dog", "cat", "dog"]),
        (["dog/a.tar/deep/1.jpg", "b.tar/cat/2.jpg"], ["dog", "cat"]),
        (["a.tar/1.jpg", "b.tar/2.jpg"], None),  # shards are no classes
        (["a.tar/dog/1.jpg", "b.tar/2.jpg", "cat/3.jpg"], None),
    ],
)
def test_a_shard_counts_as_unpacked_where_it_lies(
    tmp_path: Path, cache: Path, files: list[str], classes: list[str] | None
) -> None:
    shards: dict[str, dict[str, bytes]] = {}
    for file in files:
        head, tar, member = file.partition(".tar/")
        if tar:
            shards.setdefault(f"{head}.tar", {})[member] = b""
        else:
            (tmp_path / "p" / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "p" / file).touch()
    for name, members in shards.items():
        write_shard(tmp_path / "p" / name, members)
    index = ImageIndex.open(tmp_path / "p", cache)
    assert index.classes == tuple(sorted(set(classes or ())))
    labels = {name: index.label(i) for i, name in enumerate(relative(index))}
    expected = [None] * len(files) if classes is None else [index.classes.index(c) for c in classes]
    assert [labels[file] for file in files] == expected


def test_every_truncation_is_refused(tmp_path: Path, cache: Path) -> None:
    members = {f"{i}.jpg": bytes([i + 1]) * (700 * i) for i in range(4)} | {LONG: b"x"}
    whole = write_shard(tmp_path / "whole.tar", members).read_bytes()
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512  # what follows are blocks of zeros
    cut = tmp_path / "cut.tar"
    for length in {*range(0, end + 1, 512), *range(0, end, 97), 1, end - 1}:
        cut.write_bytes(whole[:length])
        with pytest.raises(
            ValueError, match=r"cannot read .*cut\.tar as an uncompressed tar: .+; write or fetch it again"
        ):
            ImageIndex.open(cut, cache)
    cut.write_bytes(whole[: end + 512])
    assert len(ImageIndex.open(cut, cache)) == 5


@pytest.mark.parametrize("header", [0, 1024, 2048, 3072, 3584, 4096])
def test_a_damaged_header_is_refused(tmp_path: Path, cache: Path, header: int) -> None:
    """`tarfile` would take a damaged header for the end of the shard. Records of long names have no checksum."""
    members = [*((f"{i}.jpg", b"content") for i in range(3)), (LONG, b"x"), ("4.jpg", b"")]
    shard = write_shard(tmp_path / "s.tar", members)
    whole, rng = np.frombuffer(shard.read_bytes(), np.uint8), np.random.default_rng(header)
    outcomes = set()
    for _ in range(25):
        damaged = whole.copy()
        damaged[header + rng.integers(148)] ^= rng.integers(1, 256, dtype=np.uint8)
        shard.write_bytes(damaged.tobytes())
        try:
            outcomes.add(len(ImageIndex.open(shard, cache)))
        except ValueError as error:
            outcomes.add(str(error).partition(" as ")[0])
    refused = f"cannot read {shard}"
    assert outcomes <= ({refused} if header < 3584 else {refused, 4, 5})


def test_a_size_below_zero_is_refused(tmp_path: Path, cache: Path) -> None:
    """It would lead back to the previous member, without end."""
    members = {"a.jpg": b"x", "b.jpg": b"y", "c.jpg": b"z"}
    content = bytearray(write_shard(tmp_path / "s.tar", members).read_bytes())
    header = content[2048:2560]
    header[124:136] = (-1536 % 2**96).to_bytes(12, "big")
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    content[2048:2560] = header
    (tmp_path / "s.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read .*: negative size; "):
        ImageIndex.open(tmp_path / "s.tar", cache)


def make_sparse(path: Path) -> None:
    with tarfile.open(path, "w:") as tar:
        member = tarfile.TarInfo("holes.jpg")
        member.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": "4096"}
        tar.addfile(member)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("s.tar", lambda p: p.write_bytes(gzip.compress(b"x" * 5000)), "cannot read .*s.tar as an uncompressed tar"),
        ("s.tar", lambda p: p.write_bytes(b""), "s.tar as an uncompressed tar: empty file"),
        ("s.tar", lambda p: write_shard(p, {"1.json": b"{}"}), r"no images in .*s\.tar; .*\.jpg"),
        ("s.tar", lambda p: write_shard(p, {}), r"no images in .*s\.tar; .*\.jpg"),
        ("s.tar", make_sparse, r"holes.jpg in the shard .*s\.tar is stored sparsely; write it again"),
        *(
            (f"s{e}", lambda p: p.write_bytes(b"x"), "is compressed.*; decompress it to a plain .tar")
            for e in COMPRESSED
        ),
    ],
)
def test_shards_that_cannot_be_used(
    tmp_path: Path, cache: Path, name: str, make: Callable[[Path], object], message: str
) -> None:
    """The shard is given alone, in a folder, and in a list."""
    (tmp_path / "p").mkdir()
    make(tmp_path / "p" / name)
    (tmp_path / "list.txt").write_text(f"a.jpg\np/{name}\n")
    for source in ("p/" + name, "list.txt"):
        with pytest.raises(ValueError, match=message):
            ImageIndex.open(tmp_path / source, cache)
    with pytest.raises(ValueError, match="no images in .*/p; " if message.startswith("no images") else message):
        ImageIndex.open(tmp_path / "p", cache)


def test_a_list_that_names_a_shard_that_is_not_there(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "list.txt").write_text("a.jpg\nnowhere.tar\n")
    with pytest.raises(ValueError, match=r"cannot look through .*nowhere\.tar: No such file"):
        ImageIndex.open(tmp_path / "list.txt", cache)


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("looked again")


@pytest.mark.parametrize("source", ["p", "p/s.tar", "list.txt"])
def test_headers_are_read_once(tmp_path: Path, cache: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shard(tmp_path / "p" / "s.tar", {"1.jpg": b"1", "2.jpg": b"2"})
    (tmp_path / "list.txt").write_text("p\np/s.tar\n")
    ImageIndex.open(tmp_path / source, cache)
    assert not cache.exists()  # it has only just been written
    settle(tmp_path)
    first = ImageIndex.open(tmp_path / source, cache)
    monkeypatch.setattr(tarfile, "open", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    second = ImageIndex.open(tmp_path / source, cache)
    assert contents(second) == contents(first) == contents(pickle.loads(pickle.dumps(second)))
    assert relative(second) == relative(first)


@pytest.mark.parametrize("source", ["p", "p/s.tar", "list.txt"])
@pytest.mark.parametrize("change", ["time", "size", "replaced"])
def test_a_changed_shard_is_noticed(tmp_path: Path, cache: Path, source: str, change: str) -> None:
    shard = write_shard(tmp_path / "p" / "s.tar", {"1.jpg": b"old", "2.jpg": b"2"})
    (tmp_path / "list.txt").write_text("p\n")
    settle(tmp_path)
    folder, before = shard.parent.stat(), shard.stat()
    assert len(ImageIndex.open(tmp_path / source, cache)) == 2
    assert len(list(cache.iterdir())) == 1
    filler = {"3.jpg": bytes(20480)} if change == "size" else {}
    other = write_shard(tmp_path / "other", {"2.jpg": b"2", "1.jpg": b"new"} | filler)
    if change == "replaced":
        os.replace(other, shard)  # as `write, then rename` does
    else:
        shard.write_bytes(other.read_bytes())
    if change == "size":
        os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(shard.parent, ns=(folder.st_atime_ns, folder.st_mtime_ns))
    assert b"new" in contents(ImageIndex.open(tmp_path / source, cache)).values()


def test_a_changed_list_is_noticed(tmp_path: Path, cache: Path) -> None:
    write_shard(tmp_path / "s.tar", {"1.jpg": b"1"})
    (tmp_path / "list.txt").write_text("s.tar\n")
    settle(tmp_path)
    assert relative(ImageIndex.open(tmp_path / "list.txt", cache)) == ["s.tar/1.jpg"]
    (tmp_path / "list.txt").write_text("s.tar\ns.tar\n0.jpg\n")
    assert relative(ImageIndex.open(tmp_path / "list.txt", cache)) == ["s.tar/1.jpg", "s.tar/1.jpg", "0.jpg"]


def test_real_shards(data_dir: Path, cache: Path) -> None:
    folder = data_dir / "tiny_imagenet_shards"
    if not folder.is_dir():
        pytest.skip(f"no shards at {folder}")
    index = ImageIndex.open(folder, cache)
    assert len(index) == 15000
    assert index.classes == ()
    for shard in sorted(folder.glob("*.tar")):
        alone = ImageIndex.open(shard, cache)
        with tarfile.open(shard) as tar:
            for i in range(0, len(alone), 501):
                member = alone.file(i)
                assert isinstance(member, ShardMember)
                stored = tar.extractfile(member.name)
                assert stored is not None
                assert member.read() == stored.read()


def test_a_shard_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "s.tar")
    (tmp_path / "list.txt").write_text("s.tar\n")
    for source in (tmp_path / "list.txt", tmp_path / "s.tar", tmp_path):
        with pytest.raises(ValueError, match=r"no regular file|no folder or file|no images in"):
            ImageIndex.open(source, tmp_path / "cache")
    with pytest.raises(OSError, match="no regular file"):
        ShardMember(str(tmp_path / "s.tar"), "a.jpg", 0, 1).read()
