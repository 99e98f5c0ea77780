"""The HTML report: well-formed, self-contained, and true to its numbers."""

from __future__ import annotations

import base64
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from selfpatch.visualization.curves import (
    BOTTOM,
    HEIGHT,
    LEFT,
    MOST_POINTS,
    RIGHT,
    TOP,
    WIDTH,
    curves_svg,
    points_of,
    ticks,
)
from selfpatch.visualization.report import Curves, Picture, Section, Table, Text, write_report

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Checks that every element is closed in order, and gathers tags with their attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "sheet.png"
    Image.new("RGB", (5, 4), (9, 8, 7)).save(path)
    return path


def curve_path(svg: str, number: int = 0) -> list[tuple[float, float]]:
    route = [node.get("d", "") for node in ET.fromstring(svg.split("<p class")[0]).iter("path") if node.get("fill")][
        number
    ]
    return [(float(x), float(y)) for x, y in re.findall(r"([\d.-]+) ([\d.-]+)", route)]


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
    (source,) = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert source is not None
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == picture.read_bytes()


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
    blocks = [Text(evil), Table([evil], [[evil]]), Curves({evil: [(0, 1.0)], "b": [(0, 2.0)]}, evil, evil)]
    page = Page(write_report(tmp_path / "r.html", evil, [Section(evil, blocks)]).read_text(encoding="utf-8"))
    assert "script" not in {tag for tag, _ in page.tags}
    assert page.words.count(evil) >= 8


def test_numbers_stand_right_and_words_left() -> None:
    page = Page(Table(["name", "n"], [["a", 1], ["b", None]]).html())
    cells = [attributes.get("class") for tag, attributes in page.tags if tag in ("th", "td")]
    assert cells == [None, "number"] * 3


def test_report_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 cells"):
        Table(["one"], [[1, 2]]).html()
    with pytest.raises(ValueError, match=r"notes\.txt"):
        Picture(tmp_path / "notes.txt").html()
    with pytest.raises(ValueError, match="no point"):
        Curves({"loss": []}).html()
    with pytest.raises(FileNotFoundError):
        Picture(tmp_path / "absent.png").html()


def test_points_of_leaves_out_what_is_missing() -> None:
    rows = [
        {"step": 0, "loss": 2},
        {"step": 10, "loss": None},
        {"step": 20, "knn": 0.5},
        {"step": 30, "loss": math.nan},
        {"step": 40, "loss": 1.5, "epoch": 2},
        {"loss": 1.0},
    ]
    assert points_of(rows, "loss") == [(0.0, 2.0), (40.0, 1.5)]
    assert points_of(rows, "loss", x="epoch") == [(2.0, 1.5)]


def test_curve_runs_between_the_corners_of_the_plot() -> None:
    svg = curves_svg({"loss": [(100, 4.0), (0, 8.0), (50, 7.0)]})
    start, middle, end = curve_path(svg)
    assert start == (LEFT, TOP)
    assert end == (WIDTH - RIGHT, HEIGHT - BOTTOM)
    assert middle == pytest.approx(((LEFT + WIDTH - RIGHT) / 2, TOP + (HEIGHT - TOP - BOTTOM) / 4), abs=0.1)
    assert "legend" not in svg


def test_several_curves_share_axes_and_have_a_legend() -> None:
    svg = curves_svg({"a": [(0, 0.0), (1, 1.0)], "b": [(0, 0.5), (1, 0.5)], "empty": []})
    assert curve_path(svg, 1)[0][1] == pytest.approx((TOP + HEIGHT - BOTTOM) / 2, abs=0.1)
    assert svg.count("<span>") == 2


def test_long_curves_are_thinned_without_moving() -> None:
    route = curve_path(curves_svg({"loss": [(i, 2.0 * i) for i in range(10_000)]}))
    assert len(route) == MOST_POINTS
    slopes = {round((b[1] - a[1]) / (b[0] - a[0]), 1) for a, b in zip(route[::40], route[40::40], strict=False)}
    assert len(slopes) == 1


@pytest.mark.parametrize("value", [0.0, 5.0, -1e-9, 1e12])
def test_a_flat_curve_and_a_single_point_can_be_drawn(value: float) -> None:
    for points in ([(0, value), (9, value)], [(3, value)]):
        svg = curves_svg({"loss": points})
        assert "nan" not in svg
        assert len(curve_path(svg)) == 2


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (0.13, 0.52, [0.2, 0.3, 0.4, 0.5]),
        (-3, 3, [-2, 0, 2]),
        (0, 1e5, [0, 2e4, 4e4, 6e4, 8e4, 1e5]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)
