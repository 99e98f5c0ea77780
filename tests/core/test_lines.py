"""Lines of text files."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfpatch.core.lines import read_lines


def test_lines_of_any_editor_are_read(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(b"\xef\xbb\xbf  first \r\n\r\n\t\nsecond name\nthird")
    assert read_lines(file) == ["first", "second name", "third"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(b"\xff\xfea\x00")
    with pytest.raises(ValueError, match=r"list.txt is no text file in UTF-8; write one name per line"):
        read_lines(file)
