"""The HTML report: well-formed, self-contained, and true to its numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from selfpatch.visualization.markdown import plain
from selfpatch.visualization.report import Curves, FormattedNumber, Picture, Section, Table, Text, write_report
from tests.helpers.html_page import Page
from tests.helpers.svg_curves import legend, words


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "sheet.png"
    Image.new("RGB", (5, 4), (9, 8, 7)).save(path)
    return path


def test_report_is_well_formed_and_holds_everything(picture: Path, tmp_path: Path) -> None:
    sections = [
        Section("Loss", [Curves({"loss": [(0, 2.0), (10, 1.0)], "patch loss": [(0, 3.0), (10, 2.5)]}, "by step")]),
        Section("Numbers", [Table(["metric", "value"], [["J&F", 0.62718], ["images", 1200], ["k-NN", None]])]),
        Section("Pictures", [Text("What the patches look like."), Picture(picture, "epoch 1")]),
    ]
    path = write_report(tmp_path / "deep" / "report.html", "photos <run> & more", sections)
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert [tag for tag, _ in page.tags].count("h2") == 3
    assert "photos <run> & more" in page.words
    assert {"J&F", "0.6272", "1200", "\N{EN DASH}"} <= set(page.words)
    (svg_type, svg), (png_type, png) = page.images()
    assert (svg_type, png_type) == ("image/svg+xml", "image/png")
    assert set(legend(svg.decode())) == {"loss", "patch loss"}
    assert png == picture.read_bytes()
    alternatives = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert alternatives == ["loss, patch loss by step", "epoch 1"]


def test_report_refers_to_nothing_outside_and_runs_nothing(picture: Path, tmp_path: Path) -> None:
    sections = [Section("s", [Picture(picture), Curves({"loss": [(0, 1.0)]}), Table(["a"], [])])]
    text = write_report(tmp_path / "r.html", "t", sections).read_text(encoding="utf-8")
    for tag, attributes in Page(text).tags:
        assert tag not in ("script", "link", "iframe")
        assert "href" not in attributes
        assert (attributes.get("src") or "data:").startswith("data:")
    assert "http" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_markup_in_names_stays_text(tmp_path: Path) -> None:
    evil = '<script>"&'
    cells = [evil, FormattedNumber(evil, True, evil)]
    blocks = [Text(evil), Table([evil, "n"], [cells]), Curves({evil: [(0, 1.0)], "b": [(0, 2.0)]}, evil, evil)]
    page = Page(write_report(tmp_path / "r.html", evil, [Section(evil, blocks)]).read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.words.count(evil) == 9  # title twice, heading, text, column, three in cells, caption
    ((_, svg),) = page.images()
    assert words(svg.decode()).count(evil) == 2  # label of the axis, legend


def test_numbers_stand_right_and_words_left(tmp_path: Path) -> None:
    table = Table(["name", "n"], [["a", 1], ["b", None], ["c", 0.123456]])
    page = Page(write_report(tmp_path / "r.html", "t", [Section("s", [table])]).read_text(encoding="utf-8"))
    cells = [attributes.get("class") for tag, attributes in page.tags if tag in ("th", "td")]
    assert cells == [None, "number"] * 4
    assert "0.1235" in page.words


def test_report_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 cells"):
        Table(["one"], [[1, 2]])
    (tmp_path / "notes.txt").touch()
    for block, error, message in [
        (Picture(tmp_path / "notes.txt"), ValueError, r"notes\.txt"),
        (Curves({"loss": []}), ValueError, "no point"),
        (Picture(tmp_path / "absent.png"), FileNotFoundError, "absent"),
    ]:
        with pytest.raises(error, match=message):
            write_report(tmp_path / "r.html", "t", [Section("s", [block])])
    assert not (tmp_path / "r.html").exists()


def test_names_that_would_change_the_page_are_escaped(tmp_path: Path) -> None:
    name = "caf\udce9 \u202e\x1b[31m <b>"
    shown = "caf\\xe9 \\u202e\\x1b[31m &lt;b&gt;"
    sections = [Section(name, [Text(name), Table((name,), [(name,)]), Curves({name: [(0, 1), (1, 2)]})])]
    page = write_report(tmp_path / "report.html", name, sections).read_text(encoding="utf-8")
    assert page.count(shown) >= 6
    assert not {"\u202e", "\x1b"} & set(page)
    assert plain(name) == "caf\\\\xe9 \\\\u202e\\\\x1b\\[31m \\<b\\>"
