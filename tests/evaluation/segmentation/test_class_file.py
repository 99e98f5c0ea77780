"""Class files: what is clear is read, and what could be meant in two ways is refused with file and line."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selfpatch.evaluation.segmentation.class_file import read_class_file


@pytest.mark.parametrize(
    "content",
    [
        b"0 road\n1 dirt track\n2 void\n",
        b"\xef\xbb\xbf0 road\r\n1 dirt track\r\n2 Void\r\n\r\n",
        b"0\troad\n1\tdirt track\n2\tignore",
        b"0,road\n1, dirt track\n2 ,unlabeled\n",
        b"0: road\n\n1: dirt track\n\n\n2: unlabelled\n",
        b"0) road\n1) dirt track\n2) void",
        b"  00 road \n 01   dirt track\n 02 void",
        b"road\ndirt track\nvoid\n\n",
        b"\xef\xbb\xbfroad\r\ndirt track\r\nvoid\r\n",
        b"1 dirt track\n0 road\n2 void\n",
    ],
)
def test_the_same_classes_in_any_writing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "classes.txt").write_bytes(content)
    assert read_class_file(tmp_path / "classes.txt") == ({0: "road", 1: "dirt track"}, (2,))


def test_numbers_may_have_gaps_and_void_several(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("255 void\n0 void\n7 4x4 car\n90 3 wheeler\n")
    assert read_class_file(tmp_path / "classes.txt") == ({7: "4x4 car", 90: "3 wheeler"}, (255, 0))


def test_names_may_begin_with_digits(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("2-wheeler\n4x4\nzone 1\n")
    assert read_class_file(tmp_path / "classes.txt").classes == {0: "2-wheeler", 1: "4x4", 2: "zone 1"}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("0 road\ncar\n2 void\n", "line 2 of .*classes.txt is 'car', which has no number, but other lines have"),
        ("id name\n0 road\n1 car\n", "line 1 of .*classes.txt is 'id name', which has no number"),
        ("name\nroad\ncar\n", "line 1 of .*classes.txt is 'name', which looks like a header"),
        ("road\n# vehicles\ncar\n", "line 2 of .*classes.txt is '# vehicles', which looks like a header or a comment"),
        ("road\n\ncar\n", "line 2 of .*classes.txt is '', which is empty, so that the numbers of the names"),
        ("0 1 road\n1 2 car\n", "line 1 of .*classes.txt is '0 1 road', which begins with two numbers, as all lines"),
        ("road,0\ncar,1\n", "line 1 of .*classes.txt is 'road,0', which ends in a number, as all lines do"),
        ("sky,128,64,0\ncar,0,0,9\n", "line 1 of .*classes.txt is 'sky,128,64,0', which ends in a number"),
        ("0 road\n1 car\n1 bus\n", "line 3 of .*classes.txt is 'bus', which has the number 1, as has line 2"),
        ("0 road\n1 car\n2 car\n", "line 3 of .*classes.txt is 'car', which has the name of line 2"),
        ("road\ncar\nroad\n", "line 3 of .*classes.txt is 'road', which has the name of line 1"),
        ("0 road\n1\n", "line 2 of .*classes.txt is '1', which has a number and no name"),
        ("-1 road\n", "line 1 of .*classes.txt is '-1 road', which has a number that no pixel has; use 0 to 65535"),
        ("0 road\n99999 car\n", "line 2 of .*classes.txt is '99999 car', which has a number that no pixel has"),
        (f"{'9' * 5000} road\n", "which has a number that no pixel has"),
        ("0 void\n", "lists 0 classes besides void; use 1 to 255"),
        ("\n".join(f"c{i}" for i in range(256)), "lists 256 classes besides void; use 1 to 255"),
        (" \n", "classes.txt lists no class; write a line"),
    ],
)
def test_what_could_be_meant_in_two_ways_is_refused(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(ValueError, match=complaint) as caught:
        read_class_file(tmp_path / "classes.txt")
    assert len(str(caught.value)) < 500


ENDS, ENCODINGS = ["\n", "\r\n", "\r"], ["utf-8", "utf-16", "latin-1"]
LINES = st.text(st.sampled_from("0129-: ,;=\t.)#avoidroad\ufeff\u0663\0\ud800\x85"), max_size=12)


@settings(max_examples=int(os.environ.get("SELFPATCH_FUZZ", "300")))
@given(
    st.lists(LINES, max_size=8), st.sampled_from(["\n", "\r\n", "\r"]), st.sampled_from(["utf-8", "utf-16", "latin-1"])
)
def test_any_file_is_read_or_refused_in_one_sentence(lines: list[str], end: str, encoding: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "classes.txt"
        content = end.join(lines).encode(encoding, "replace")
        path.write_bytes(content)
        found = refusal = None
        try:
            found = read_class_file(path)
        except ValueError as error:
            refusal = str(error)
    if found is None:
        assert refusal is not None
        assert str(path) in refusal
        assert "\n" not in refusal
        return
    written = content.decode().split(end)
    numbers = [*found.classes, *found.void]
    assert (
        len(set(numbers))
        == len(numbers)
        == sum(any(character not in " \t\x85\ufeff" for character in line) for line in written)
    )
    assert all(0 <= number <= 65535 for number in numbers)
    assert all(found.classes.values())
    assert len(set(found.classes.values())) == len(found.classes)
