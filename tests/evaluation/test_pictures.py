"""Pictures of evaluations lie in their folder, whatever the data set calls its images."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from selfpatch.evaluation.pictures import save_picture


def test_names_with_folders_and_spaces(tmp_path: Path) -> None:
    for name in ("a", "b c/d (1)"):
        assert save_picture(tmp_path, name, Image.new("RGB", (2, 2))) == f"pictures/{name}.jpg"
        assert (tmp_path / "pictures" / f"{name}.jpg").is_file()


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "pictures").write_text("no folder")
    with pytest.raises(OSError, match=r"cannot write .*pictures/a\.jpg \((File exists|Not a directory)\)"):
        save_picture(tmp_path, "a", Image.new("RGB", (2, 2)))


def test_names_do_not_lead_outside(tmp_path: Path) -> None:
    for name in ("../a", "/tmp/a", "a/../../b"):
        with pytest.raises(ValueError, match="the data set names"):
            save_picture(tmp_path, name, Image.new("RGB", (2, 2)))
    assert list(tmp_path.iterdir()) == []
