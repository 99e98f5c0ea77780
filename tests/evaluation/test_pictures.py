"""Pictures of evaluations lie in their folder, whatever the data set calls its images."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from selfpatch.evaluation.pictures import LINE_HEIGHT, WIDEST, numbered, save_picture, scaled_to_height, with_legend


def test_names_with_folders_and_spaces(tmp_path: Path) -> None:
    for name in ("a", "b c/d (1)"):
        assert save_picture(tmp_path, name, Image.new("RGB", (2, 2))) == f"pictures/{name}.jpg"
        assert (tmp_path / "pictures" / f"{name}.jpg").is_file()


def test_names_of_items_are_told_apart_and_fit_every_file_system(tmp_path: Path) -> None:
    assert numbered(3, "a/b.jpg") == "00003-a_b"
    assert numbered(4, "a_b.png") == "00004-a_b"
    assert numbered(5, '../a:b?"*') == "00005-.._a_b___"
    long = numbered(6, "\U0001d504" * 300 + ".jpg")
    assert save_picture(tmp_path, long, Image.new("RGB", (2, 2))) == f"pictures/{long}.jpg"


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "pictures").write_text("no folder")
    with pytest.raises(OSError, match=r"cannot write .*pictures/a\.jpg \((File exists|Not a directory)\)"):
        save_picture(tmp_path, "a", Image.new("RGB", (2, 2)))


def test_names_do_not_lead_outside(tmp_path: Path) -> None:
    for name in ("../a", "/tmp/a", "a/../../b"):
        with pytest.raises(ValueError, match="the data set names"):
            save_picture(tmp_path, name, Image.new("RGB", (2, 2)))
    assert list(tmp_path.iterdir()) == []


def test_strips_are_squeezed() -> None:
    assert scaled_to_height(Image.new("RGB", (60, 30)), 10).size == (20, 10)
    assert scaled_to_height(Image.new("RGB", (60_000, 1)), 160).size == (160 * WIDEST, 160)
    assert scaled_to_height(Image.new("RGB", (1, 60_000)), 160).size == (1, 160)


def test_a_legend_is_below_and_needs_more_lines_where_it_is_narrow() -> None:
    image, colours = Image.new("RGB", (300, 20), (1, 2, 3)), {"right": (0, 255, 0), "wrong": (255, 0, 0)}
    wide, narrow = with_legend(image, colours), with_legend(image.resize((100, 20)), colours)
    assert (wide.height, narrow.height) == (20 + LINE_HEIGHT, 20 + 2 * LINE_HEIGHT)
    assert wide.crop((0, 0, 300, 20)).tobytes() == image.tobytes()
    assert narrow.getpixel((8, 20 + LINE_HEIGHT + LINE_HEIGHT // 2)) == (255, 0, 0)
