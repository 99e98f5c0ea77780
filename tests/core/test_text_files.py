"""Text files of lists and JSON."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from selfpatch.core.text_files import numbered_lines, read_json, read_text


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"\xef\xbb\xbf  first \r\n\r\n\t\nsecond name\nthird", ["first", "second name", "third"]),
        (b"old\rmac\r", ["old", "mac"]),
        (b"a\n\xef\xbb\xbfb\n", ["a", "b"]),  # two files with marks, joined
        ("Straße\n\u2028kept\u2028inside \n".encode(), ["Straße", "kept\u2028inside"]),
        (b"", []),
    ],
)
def test_lines_of_any_editor_are_read(tmp_path: Path, content: bytes, lines: list[str]) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    assert [line for _, line in numbered_lines(tmp_path / "list.txt")] == lines


def test_lines_are_numbered_as_an_editor_shows_them(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\n a b \r\n\r\nc")
    assert numbered_lines(tmp_path / "list.txt") == [(2, "a b"), (4, "c")]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("names".encode("utf-16"), r"list.txt is UTF-16 text; save it as UTF-8, e.g. by `iconv -f UTF-16 -t UTF-8`"),
        ("names".encode("utf-32"), r"list.txt is UTF-32 text"),
        (b"a\nb\nStra\xdfe\n", r"list.txt is no text file in UTF-8 \(byte 0xdf in line 3\); save it as UTF-8"),
        (b"a\nb\0c\n", r"list.txt has a zero byte in line 2, so it is no text file in UTF-8"),
    ],
)
def test_other_encodings_are_refused_with_file_and_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        read_text(tmp_path / "list.txt")


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"pipe is a pipe or device; give a file"):
        read_text(tmp_path / "pipe")
    with open(tmp_path / "film.txt", "wb") as file:
        file.truncate(2**40)  # takes no room on the disk
    for read, limit in ((read_text, 2**28), (numbered_lines, 2**28), (read_json, 2**33)):
        with pytest.raises(ValueError, match=rf"film.txt has {2**40} bytes, more than {limit}; give the right file"):
            read(tmp_path / "film.txt")
    with pytest.raises(ValueError, match=r"is a folder; give a file"):
        read_text(tmp_path)
    with pytest.raises(ValueError, match=r"there is no file .*none.txt; name another"):
        read_text(tmp_path / "none.txt", "name another")
    with pytest.raises(ValueError, match=r"cannot read .*x: File name too long"):
        read_text(tmp_path / ("x" * 300))


def test_json_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": [1, "\xc3\xbc"]}')
    assert read_json(tmp_path / "a.json") == {"a": [1, "ü"]}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"a": 1,\n "b": }', r"a.json is not valid JSON \(Expecting value: line 2, column 7\)"),
        ("  \n", r"a.json is empty"),
        ('{"a": 1, "b": 2, "a": 3}', r"a.json is not usable JSON: an object has the key 'a' twice"),
        ("[" * 200_000, r"a.json is not usable JSON: it is nested too deeply"),
        ("1" * 5000, r"a.json is not usable JSON: Exceeds the limit"),
    ],
)
def test_other_json_is_refused_in_one_sentence(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        read_json(tmp_path / "a.json")
    assert "\n" not in str(caught.value)
