"""Image files are opened only if they are regular and of a wanted format, and decoded only if their size allows it."""

from __future__ import annotations

import os
import re
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import selfpatch
from selfpatch.data.decode import fast
from selfpatch.data.decode.fast import read_fast
from selfpatch.data.decode.opening import LIMIT_VARIABLE, check_size, max_pixels
from selfpatch.data.decode.pillow import BadImage, read_picture, stored_image
from selfpatch.data.sources.limits import DEFAULT_LIMIT

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
WMF = b"\xd7\xcd\xc6\x9a\0\0\0\0\0\0\x40\0\x40\0\x60\0\0\0\0\0\0\0\x01\0\x09\0"


def read_stored(file: Path, channels: int) -> object:
    with stored_image(file) as image:
        return image.load()


READERS: list[Callable[[Path, int], object]] = [read_picture, read_fast, read_stored]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))


@pytest.mark.parametrize("make", [fifo, device, unix_socket])
@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("channels", [3, 4])
def test_only_regular_files_are_opened(
    tmp_path: Path, make: Callable[[Path], None], read: Callable[[Path, int], object], channels: int
) -> None:
    make(tmp_path / "a.jpg")
    with pytest.raises(BadImage, match=r"a\.jpg: it is no regular file, but a named pipe"):
        read(tmp_path / "a.jpg", channels)


def test_a_file_replaced_by_a_pipe_while_it_is_opened_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    regular = os.stat(__file__)
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", lambda path: regular)
        with pytest.raises(BadImage, match="no regular file"):
            read_picture(tmp_path / "a.jpg")


@pytest.mark.parametrize("content", [EPS, WMF, b"SIMPLE  =                    T" + b" " * 50, b"", b"GIF89a"])
@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("channels", [3, 4])
def test_no_program_is_started_for_another_format(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    read: Callable[[Path, int], object],
    channels: int,
) -> None:
    monkeypatch.setattr("subprocess.Popen", lambda *args, **kwargs: pytest.fail(f"started {args}"))
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BadImage, match="it is empty, damaged, or no image of a format that is read"):
        read(tmp_path / "a.jpg", channels)


def png(width: int, height: int, depth: int, colour: int) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def gif(width: int, height: int) -> bytes:
    """Return a small GIF with a large first frame."""
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\2\2\x44\1\0"
    return b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6) + frame + b";"


def tiff(width: int, height: int) -> bytes:
    fields = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 100}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    return b"II*\0" + struct.pack("<IH", 8, len(fields)) + entries + bytes(4)


@pytest.mark.parametrize("limit", [None, "10000000"])
@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "content",
    [
        png(17_000, 10_000, 8, 0),
        png(178_000_000, 1, 8, 0),
        png(2_000_000, 1, 8, 2),
        png(17_000, 10_000, 16, 6),
        gif(60_000, 60_000),
        tiff(2**31, 2**31),
        tiff(1, 2_000_000),
        b"P6 2000000 100 255\n",
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 100, 0, 54, 40, 20_000, 20_000, 1, 24, 0, 0, 0, 0, 0, 0),
    ],
    ids=["png", "line", "short line", "deep", "gif", "tiff", "tiff column", "ppm", "bmp"],
)
def test_a_claimed_size_is_refused_by_every_reader_alike(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: bytes,
    read: Callable[[Path, int], object],
    channels: int,
    limit: str | None,
) -> None:
    if limit is not None:
        monkeypatch.setenv(LIMIT_VARIABLE, limit)
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(BadImage, match=r"pixels.* more than \d+|decompression bomb") as caught:
        read(tmp_path / "a.jpg", channels)
    assert caught.value.path == str(tmp_path / "a.jpg")


def test_the_limit_is_set_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    monkeypatch.delenv(LIMIT_VARIABLE, raising=False)
    assert max_pixels() == DEFAULT_LIMIT
    check_size(10_000, 10_000)
    check_size(10_000, 10_000, 4)
    monkeypatch.setenv(LIMIT_VARIABLE, "400000000")
    check_size(20_000, 20_000)
    assert Image.MAX_IMAGE_PIXELS == 400_000_000
    for wrong in ("many", "0", "-1", "1e9"):
        monkeypatch.setenv(LIMIT_VARIABLE, wrong)
        with pytest.raises(ValueError, match=f"SELFPATCH_MAX_PIXELS is '{wrong}'; set it to a number of pixels"):
            max_pixels()


def test_a_huge_file_is_not_read_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "1000")
    for name, beginning in {"a.jpg": b"\xff\xd8\xff", "a.png": png(9, 9, 16, 6), "a.tif": tiff(9, 9)}.items():
        (tmp_path / name).write_bytes(beginning)
        os.truncate(tmp_path / name, 81_537)
        for read in READERS:
            with pytest.raises(BadImage, match="it has 81537 bytes, more than 81536"):
                read(tmp_path / name, 4)


@pytest.mark.parametrize("read", [read_picture, read_fast])
def test_too_little_memory_makes_a_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path, int], object]
) -> None:
    def refuse(*args: object) -> None:
        raise MemoryError

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    target = "load" if read is read_picture else "of"
    monkeypatch.setattr(Image.Image if target == "load" else fast.Raster, target, refuse)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", refuse)
    with pytest.raises(BadImage, match=r"a\.png: there is not enough memory for it"):
        read(tmp_path / "a.png", 3)


def test_images_are_opened_in_one_place() -> None:
    """Other functions of Pillow, torchvision and OpenCV try any format, open pipes, and have other limits or none."""
    package = Path(selfpatch.__file__).parent
    opener = re.compile(r"\bImage\.open\(|torchvision\.io|\bimread\(|\bimdecode\(|\bdecode_(png|jpeg|image)\(")
    found = {file.relative_to(package).as_posix() for file in package.rglob("*.py") if opener.search(file.read_text())}
    # `fast` passes on what `open_image` has checked.
    assert found == {"data/decode/opening.py", "data/decode/fast.py"}
