"""Index of images: what it finds, in which order, and that a second opening does not search again."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfpatch.data.sources.cache import default_cache_dir
from selfpatch.data.sources.index import ImageIndex
from selfpatch.data.sources.scan import EXTENSIONS, NoImagesError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def settle(root: Path) -> None:
    """Make all folders look unchanged for an hour: only such folders are cached."""
    for folder, _, _ in os.walk(root):
        status = os.stat(folder)
        os.utime(folder, ns=(status.st_atime_ns, status.st_mtime_ns - 3600 * 10**9))


def relative(index: ImageIndex) -> list[str]:
    return [index.path(i).relative_to(index.root).as_posix() for i in range(len(index))]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return touch(
        tmp_path / "photos",
        "b/2.JPG",
        "b/10.jpeg",
        "a/deep/er/x.png",
        "a.webp",
        "notes.txt",
        ".hidden/y.jpg",
        ".z.jpg",
        "__MACOSX/b/2.JPG",
        "a/@eaDir/x.png/thumb.jpg",
        "b/.ipynb_checkpoints/2-checkpoint.jpg",
        "b/Thumbs.db",
    )


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def test_a_folder_is_searched_at_any_depth_and_sorted(photos: Path, cache: Path) -> None:
    index = ImageIndex.open(photos, cache)
    assert relative(index) == ["a.webp", "a/deep/er/x.png", "b/10.jpeg", "b/2.JPG"]
    assert len(index) == 4
    with pytest.raises(IndexError):
        index.path(4)


def test_pillow_reads_every_extension() -> None:
    assert set(EXTENSIONS) <= set(Image.registered_extensions())


def test_names_beyond_ascii_survive(tmp_path: Path, cache: Path) -> None:
    touch(tmp_path / "p", "Größe 1.jpg", "画像.png")
    (Path(tmp_path) / "p" / os.fsdecode(b"\xff\xfe.jpg")).touch()  # no valid UTF-8 at all
    settle(tmp_path / "p")
    for _ in range(2):  # walked, then from the cache
        index = ImageIndex.open(tmp_path / "p", cache)
        assert all(index.path(i).exists() for i in range(3))


def test_links_are_followed_once_and_cycles_end(tmp_path: Path, cache: Path) -> None:
    root = touch(tmp_path / "p", "b/1.jpg", "a/2.jpg")
    outside = touch(tmp_path / "outside", "3.jpg")
    (root / "a" / "up").symlink_to(root)
    (root / "a0").symlink_to(root / "b")  # b keeps its own name, though a0 sorts before it
    (root / "c").symlink_to(outside)
    (root / "file.jpg").symlink_to(outside / "3.jpg")
    (root / "broken").symlink_to(tmp_path / "nowhere")
    assert relative(ImageIndex.open(root, cache)) == ["a/2.jpg", "b/1.jpg", "c/3.jpg", "file.jpg"]


def test_a_second_opening_does_not_walk(photos: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settle(photos)
    first = ImageIndex.open(photos, cache)

    def refuse(*_: object) -> None:
        raise AssertionError("walked again")

    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    second = ImageIndex.open(photos, cache)
    assert relative(second) == relative(first)
    assert second.fingerprint == first.fingerprint


@pytest.mark.parametrize("change", ["add", "remove", "add deep", "new folder"])
def test_a_change_in_any_folder_is_seen(photos: Path, cache: Path, change: str) -> None:
    settle(photos)
    before = ImageIndex.open(photos, cache)
    expected = set(relative(before))
    if change == "remove":
        (photos / "b" / "2.JPG").unlink()
        expected.remove("b/2.JPG")
    else:
        name = {"add": "new.jpg", "add deep": "a/deep/er/new.jpg", "new folder": "c/new.jpg"}[change]
        touch(photos, name)
        expected.add(name)
    after = ImageIndex.open(photos, cache)
    assert set(relative(after)) == expected
    assert after.fingerprint != before.fingerprint


def test_a_folder_that_has_just_changed_is_not_cached(photos: Path, cache: Path) -> None:
    ImageIndex.open(photos, cache)
    assert not cache.exists()


def test_a_folder_that_has_gone_is_noticed(photos: Path, cache: Path) -> None:
    settle(photos)
    ImageIndex.open(photos, cache)
    (photos / "b").rename(photos / "c")
    settle(photos)
    assert relative(ImageIndex.open(photos, cache))[-1] == "c/2.JPG"


@pytest.mark.parametrize("damage", [b"", b"not a zip file", None])
def test_a_damaged_cache_is_made_anew(photos: Path, cache: Path, damage: bytes | None) -> None:
    settle(photos)
    expected = relative(ImageIndex.open(photos, cache))
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:-40] if damage is None else damage)
    assert relative(ImageIndex.open(photos, cache)) == expected
    assert [f.name for f in cache.iterdir()] == [file.name]  # no temporary files stay behind


def test_a_cache_of_another_format_is_made_anew(photos: Path, cache: Path) -> None:
    settle(photos)
    expected = relative(ImageIndex.open(photos, cache))
    (file,) = cache.iterdir()
    with np.load(file) as stored:
        other = {**stored, "format": np.array(1), "characters": stored["characters"] + 1}
    np.savez(file, **other)
    assert relative(ImageIndex.open(photos, cache)) == expected


def _change(**arrays: object) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        with np.load(file) as stored:
            np.savez(file, **{**stored, **arrays})

    return change


def _as_array(file: Path) -> None:
    with open(file, "wb") as stream:
        np.save(stream, np.zeros(3))


@pytest.mark.parametrize(
    "damage",
    [
        _as_array,
        _change(offsets=np.array([0, 10**9])),
        _change(offsets=np.array([0, -5, 3])),
        _change(offsets=np.array([0.0, 3.0])),
        _change(characters=np.zeros((2, 2), np.uint8)),
        _change(extents=np.zeros((1, 3), np.int64)),
        _change(extents=np.zeros(3, np.int64)),
        _change(stamps=np.frombuffer(b"[]", np.uint8)),
        _change(stamps=np.frombuffer(b"5", np.uint8)),
        _change(format=np.array("x")),
    ],
)
def test_a_foreign_cache_is_made_anew(photos: Path, cache: Path, damage: Callable[[Path], None]) -> None:
    settle(photos)
    expected = relative(ImageIndex.open(photos, cache))
    (file,) = cache.iterdir()
    damage(file)
    assert relative(ImageIndex.open(photos, cache)) == expected


def test_a_cache_that_cannot_be_written_is_no_cache(photos: Path, tmp_path: Path) -> None:
    settle(photos)
    blocked = tmp_path / "file"
    blocked.touch()
    assert len(ImageIndex.open(photos, blocked / "cache")) == 4


def test_the_cache_folder_follows_xdg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/where")
    assert default_cache_dir() == Path("/some/where/selfpatch")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_cache_dir() == Path("/home/me/.cache/selfpatch")


def test_a_list_keeps_its_order_and_resolves_against_its_own_folder(tmp_path: Path) -> None:
    file = tmp_path / "lists" / "train.txt"
    file.parent.mkdir()
    file.write_bytes(b"\xef\xbb\xbf# chosen by hand\r\nb.jpg\r\n\r\n  ../a b.png  \r\n/abs/c.jpg\r\nb.jpg\r\n")
    index = ImageIndex.open(file)
    names = [str(index.path(i)) for i in range(len(index))]
    assert names == [f"{file.parent}/b.jpg", f"{file.parent}/../a b.png", "/abs/c.jpg", f"{file.parent}/b.jpg"]
    assert index.classes == ()


def test_a_list_of_other_editors_and_with_a_column_of_labels(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa b.jpg \r\n\r\n\xef\xbb\xbfc.png\r\n")
    index = ImageIndex.open(tmp_path / "list.txt", cache)
    assert [index.name(i) for i in range(len(index))] == ["a b.jpg", "c.png"]
    for line in ("b.jpg 1", "b.jpg\tcat", "b.jpg, 3"):
        (tmp_path / "list.txt").write_text(f"a.jpg\n{line}\n")
        with pytest.raises(ValueError, match=r"the list names 'b\.jpg.*', and there is no such file; write one path a"):
            ImageIndex.open(tmp_path / "list.txt", cache)


def test_a_film_is_no_list_and_not_read_to_its_end(tmp_path: Path, cache: Path) -> None:
    with open(tmp_path / "film.bin", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"film\.bin is not a text file"):
        ImageIndex.open(tmp_path / "film.bin", cache)


def test_classes_are_the_folders_below_the_root(tmp_path: Path, cache: Path) -> None:
    index = ImageIndex.open(touch(tmp_path / "p", "dog/1.jpg", "cat/deep/2.jpg", "cat/3.jpg", "empty/note.txt"), cache)
    assert index.classes == ("cat", "dog")
    labels = {name: index.label(i) for i, name in enumerate(relative(index))}
    assert labels == {"cat/3.jpg": 0, "cat/deep/2.jpg": 0, "dog/1.jpg": 1}


@pytest.mark.parametrize("names", [["a/1.jpg", "b/2.jpg", "3.jpg"], ["a/1.jpg", "a/2.jpg"], ["1.jpg"]])
def test_no_classes_without_two_folders_that_hold_all(tmp_path: Path, cache: Path, names: list[str]) -> None:
    index = ImageIndex.open(touch(tmp_path / "p", *names), cache)
    assert index.classes == ()
    assert index.label(0) is None


def test_the_fingerprint_depends_on_relative_paths_only(tmp_path: Path) -> None:
    same = [ImageIndex(tmp_path / root, [b"ab", b"c"]) for root in ("x", "y")]
    assert same[0].fingerprint == same[1].fingerprint
    others = [ImageIndex(tmp_path, paths).fingerprint for paths in ([b"a", b"bc"], [b"c", b"ab"], [b"ab"])]
    assert len({same[0].fingerprint, *others}) == 4


def test_split_shares_none_misses_none_and_is_seeded(tmp_path: Path) -> None:
    index = ImageIndex(tmp_path, [b"%d.jpg" % i for i in range(105)])
    train, held_out = index.split(8, seed=3)
    assert len(held_out) == 8
    assert sorted([*train, *held_out]) == list(range(105))
    assert (np.diff(train) > 0).all()
    np.testing.assert_array_equal(index.split(8, seed=3)[1], held_out)
    assert list(index.split(8, seed=4)[1]) != list(held_out)
    assert [len(indices) for indices in index.split(32, seed=0)] == [95, 10]  # a tenth at most
    assert [len(indices) for indices in index.split(0, seed=0)] == [105, 0]
    with pytest.raises(ValueError, match="-1 images cannot be held out"):
        index.split(-1, seed=0)


def test_errors_say_what_to_do(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder or file '.*nowhere'; give a folder of images, or a text file"):
        ImageIndex.open(tmp_path / "nowhere", cache)
    with pytest.raises(NoImagesError, match=r"no images in .*\.jpg"):
        ImageIndex.open(touch(tmp_path / "p", "note.txt"), cache)
    (tmp_path / "list.txt").write_text("# nothing\n\n")
    with pytest.raises(ValueError, match="names no images"):
        ImageIndex.open(tmp_path / "list.txt", cache)
    Image.new("RGB", (9, 9)).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match=r"photo.png is not a text file"):
        ImageIndex.open(tmp_path / "photo.png", cache)


def test_workers_get_the_whole_index(photos: Path, cache: Path) -> None:
    index = ImageIndex.open(photos, cache)
    copy = pickle.loads(pickle.dumps(index))
    assert relative(copy) == relative(index)


def test_torch_is_not_imported() -> None:
    code = "import sys, selfpatch.data.sources.index; sys.exit('torch' in sys.modules or 'PIL' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_real_folders(data_dir: Path, cache: Path) -> None:
    assert len(ImageIndex.open(data_dir / "imagenet_sample_256", cache)) == 1000
    cifar = ImageIndex.open(data_dir / "cifar10_mini" / "train", cache)
    assert len(cifar) == 300
    assert len(cifar.classes) == 10
    assert all(cifar.path(i).parent.name == cifar.classes[cifar.label(i) or 0] for i in range(300))


def test_names_are_paths_below_the_root(photos: Path, tmp_path: Path, cache: Path) -> None:
    index = ImageIndex.open(photos, cache)
    for i in range(len(index)):
        assert index.name(i) == index.path(i).relative_to(photos).as_posix()
    absolute = ImageIndex(tmp_path, [str(tmp_path / "a" / "b.jpg").encode()])
    assert absolute.name(0) == "a/b.jpg"


def test_missing_files_are_noticed_before_any_is_read(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{i}.jpg" for i in range(60)))
    paths = [f"{i}.jpg" for i in range(120)]
    (tmp_path / "list.txt").write_text("\n".join(paths[:100]))
    ImageIndex.open(tmp_path / "list.txt").require_files()
    (tmp_path / "list.txt").write_text("\n".join(paths))
    with pytest.raises(ValueError, match=r"25 of 50 image files .* cannot be found, e\.g\. .*/60\.jpg; list"):
        ImageIndex.open(tmp_path / "list.txt").require_files()
    (tmp_path / "list.txt").write_text("away.jpg")
    with pytest.raises(ValueError, match="1 of 1 image files that were tried cannot be found"):
        ImageIndex.open(tmp_path / "list.txt").require_files()


def test_a_heading_is_no_image(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "without_ending")
    (tmp_path / "list.csv").write_text("path\na.jpg\nb.jpg\n")
    with pytest.raises(ValueError, match=r"the list names 'path', and there is no such file; write .* no heading"):
        ImageIndex.open(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("a.jpg\nphots/beach\n")
    with pytest.raises(ValueError, match=r"the list names 'phots/beach', .* one path a line, relative to .*"):
        ImageIndex.open(tmp_path / "list.csv")
    (tmp_path / "list.csv").write_text("without_ending\na.jpg\n")
    assert len(ImageIndex.open(tmp_path / "list.csv")) == 2
