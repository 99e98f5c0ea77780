"""Files that survive a failed write."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfpatch.core.atomic_io import write_atomically
from tests.helpers.disk import files_below, largest_file


def test_text_and_bytes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    write_atomically(path, b"\xff")
    assert path.read_bytes() == b"\xff"


def test_what_is_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    (tmp_path / "text").write_text("hi")
    for path in (tmp_path / "file", tmp_path / "text" / "below"):
        with pytest.raises(OSError, match="is intact; move away what is in its place and try again"):
            write_atomically(path, "new")


def test_the_old_file_survives_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    with largest_file(1000), pytest.raises(OSError, match="what was written before is intact"):
        write_atomically(path, b"n" * 100_000)
    assert files_below(tmp_path) == {path: b"old"}
