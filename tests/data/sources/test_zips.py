"""Zip archives: the same images as unpacked, and damage, which never goes unnoticed."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest

from selfpatch.data.sources.index import ImageIndex
from selfpatch.data.sources.limits import LIMIT_VARIABLE
from selfpatch.data.sources.zips import ZipMember

MEMBERS = {
    "b/2.jpg": b"two" * 300,
    "a/1.png": b"one",
    "a/empty.jpg": b"",
    "./../../up.jpg": b"up",
    "notes.txt": b"no image",
    "__MACOSX/._1.jpg": b"litter",
    "é/ß.jpg": os.urandom(999),
}
EXPECTED = {"a/1.png", "a/empty.jpg", "b/2.jpg", "up.jpg", "é/ß.jpg"}


class Unseekable(io.RawIOBase):
    """A stream to which a zip is written with the sizes behind the content."""

    def __init__(self) -> None:
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, content: object) -> int:
        self.content += bytes(content)  # type: ignore[call-overload]
        return len(content)  # type: ignore[arg-type]


def write_zip(path: Path, method: int, *, streamed: bool = False) -> Path:
    target = Unseekable() if streamed else io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:  # type: ignore[call-overload]
        for name, content in MEMBERS.items():
            archive.writestr(name, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(target.content if isinstance(target, Unseekable) else target.getvalue())
    return path


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_counts_as_what_it_unpacks_to(tmp_path: Path, method: int, streamed: bool) -> None:
    index = ImageIndex.open(write_zip(tmp_path / "a.ZIP", method, streamed=streamed), tmp_path / "cache")
    files = {index.name(i).removeprefix("a.ZIP/"): index.file(i) for i in range(len(index))}
    assert list(files) == sorted(EXPECTED)
    contents = {name: file.read() for name, file in files.items() if isinstance(file, ZipMember)}
    assert contents == {
        (name if "up" not in name else "up.jpg"): MEMBERS[{"up.jpg": "./../../up.jpg"}.get(name, name)]
        for name in EXPECTED
    }


def test_an_archive_next_to_images_is_what_was_downloaded_and_does_not_count(tmp_path: Path) -> None:
    write_zip(tmp_path / "photos" / "all.zip", zipfile.ZIP_STORED)
    assert len(ImageIndex.open(tmp_path / "photos", tmp_path / "cache")) == 5
    (tmp_path / "photos" / "a.jpg").touch()
    index = ImageIndex.open(tmp_path / "photos", tmp_path / "cache")
    assert [index.name(i) for i in range(len(index))] == ["a.jpg"]


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", zipfile.ZIP_STORED)
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"cannot read .*a\.zip as a zip archive: .*; fetch it again"):
        ImageIndex.open(archive, tmp_path / "cache")


def test_an_encrypted_or_rarely_compressed_image_is_refused(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", zipfile.ZIP_BZIP2)
    with pytest.raises(ValueError, match=r"a\.zip is compressed by a method that is not read; unpack the archive"):
        ImageIndex.open(archive, tmp_path / "cache")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_within_an_image_is_noticed_when_it_is_read(tmp_path: Path, method: int) -> None:
    archive = write_zip(tmp_path / "a.zip", method)
    index = ImageIndex.open(archive, tmp_path / "cache")
    content = bytearray(archive.read_bytes())
    for i in range(len(index)):
        file = index.file(i)
        assert isinstance(file, ZipMember)
        if file.name == "b/2.jpg":
            content[file.offset + 40] ^= 255
        elif file.name == "a/1.png":
            content[file.offset] ^= 255
    archive.write_bytes(content)
    for i in range(len(index)):
        file = index.file(i)
        if str(file).endswith(("2.jpg", "1.png")):
            with pytest.raises(OSError, match=r"checksum is wrong|content is damaged|cut short|no member at its place"):
                file.read()  # type: ignore[union-attr]


def test_a_bomb_is_not_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.jpg", b"\0" * 300_000)
    monkeypatch.setenv(LIMIT_VARIABLE, "10000")
    file = ImageIndex.open(tmp_path / "a.zip", tmp_path / "cache").file(0)
    with pytest.raises(OSError, match=r"has more than 225536 bytes \(see SELFPATCH_MAX_PIXELS\)"):
        file.read()  # type: ignore[union-attr]


def test_an_image_outside_of_the_archive_is_refused(tmp_path: Path) -> None:
    archive = write_zip(tmp_path / "a.zip", zipfile.ZIP_STORED)
    content = bytearray(archive.read_bytes())
    entry = content.find(b"PK\1\2")
    content[entry + 42 : entry + 46] = (10**6).to_bytes(4, "little")
    archive.write_bytes(content)
    with pytest.raises(ValueError, match=r"b/2\.jpg lies outside of it; fetch it again"):
        ImageIndex.open(archive, tmp_path / "cache")
