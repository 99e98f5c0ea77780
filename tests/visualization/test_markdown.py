"""Reports beyond the page: curves as SVG files, and blocks as Markdown that shows text as it is."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfpatch.visualization.curves import COLOURS, curves_file, curves_svg
from selfpatch.visualization.markdown import markdown_page, plain
from selfpatch.visualization.report import Curves, Section, Table, Text, Written

SVG = "{http://www.w3.org/2000/svg}"
CURVES = {"DINO": [(0.0, 6.0), (100.0, 4.0)], "SelfPatch <k=4> & wrap": [(0.0, 6.5), (100.0, 3.5)], "none yet": []}


def test_a_figure_is_a_whole_file_on_white_paper() -> None:
    root = ET.fromstring(curves_file(CURVES, title="loss"))
    assert root.tag == f"{SVG}svg"
    left, top, width, height = map(float, root.attrib["viewBox"].split())
    paper = next(root.iter(f"{SVG}rect")).attrib
    assert [float(paper[name]) for name in ("x", "y", "width", "height")] == [left, top, width, height]
    assert paper["fill"] == "rgb(255, 255, 255)"
    assert "var(" not in ET.tostring(root, encoding="unicode")
    for node in root.iter(f"{SVG}text"):
        assert left < float(node.attrib["x"]) < left + width
        assert top < float(node.attrib["y"]) < top + height


@given(st.lists(st.text(max_size=120), min_size=1, max_size=20, unique=True), st.text(max_size=120))
def test_any_names_make_a_file_whose_legend_overlaps_nowhere(names: list[str], title: str) -> None:
    svg = curves_file({name: [(0, 1.0), (1, 2.0)] for name in names}, title=title, x_label=title)
    root = ET.fromstring(svg.encode())
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    samples = [
        (float(at[1]), float(at[2]), float(at[3]))
        for node in root.iter(f"{SVG}path")
        if (at := re.match(r"M([\d.]+) ([\d.]+)h([\d.]+)", node.attrib["d"]))
    ]
    assert len(samples) == len(set(samples)) == len(names)
    shown = [n for n in root.iter(f"{SVG}text") if n.attrib["text-anchor"] == "start"][1:]
    for i, (x, y, length) in enumerate(samples):
        start = float(shown[i].attrib["x"])
        beside = [left for left, line, _ in samples if line == y and left > x]
        assert x + length < start
        assert start + 4 * len(shown[i].text or "") < min(beside, default=width)
        assert y < height - 34  # the box begins that much above the plot


def test_a_long_name_is_cut_to_its_room() -> None:
    name = "WIDE NAMES " * 30
    shown = [node.text or "" for node in ET.fromstring(curves_file({name: [(0, 1.0)]}, title=name)).iter(f"{SVG}text")]
    cut = [text for text in shown if text.startswith("WIDE")]
    assert len(cut) == 2
    assert all(text.endswith("\N{HORIZONTAL ELLIPSIS}") and 20 < len(text) < 80 for text in cut)


def test_more_curves_than_colours_differ_by_their_strokes() -> None:
    count = 3 * len(COLOURS)
    curves = {f"arm {i}": [(0.0, float(i)), (1.0, 2.0)] for i in range(count)}
    root = ET.fromstring(curves_file(curves, title="loss"))
    strokes = {
        (node.attrib["stroke"], node.attrib.get("stroke-dasharray")) for node in root.iter(f"{SVG}path") if len(node)
    }
    assert len(strokes) == count
    assert len(set(re.findall(r'<i style="(.*?)"', curves_svg(curves)))) == count


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a|b", r"a\|b"), ("knn_top1", "knn_top1"), ("_a_ *b*", r"\_a\_ \*b\*"), ("<k=4>", r"\<k=4\>"), ("J&F", "J&F"),
        ("&lt;", r"\&lt;"), ("[a](b)", r"\[a\](b)"), ("two\n lines", "two lines"), ("$x$", r"\$x\$"), ("a\\", r"a\\"),
    ],
)  # fmt: skip
def test_markdown_shows_text_as_it_is(text: str, expected: str) -> None:
    assert plain(text) == expected


def test_markdown_of_the_blocks(tmp_path: Path) -> None:
    blocks = [Text("- no list"), Text("0.5 is a number"), Table(["a", "n"], [["x", Written("1 ± 2", True, "†")]])]
    text = markdown_page("# T", [Section("S", blocks)], tmp_path)
    assert text == (
        "# # T\n\n## S\n\n\\- no list\n\n0.5 is a number\n\n| a | n |\n| --- | ---: |\n| x | **1 ± 2** † |\n"
    )
    with pytest.raises(ValueError, match="no form for Curves"):
        markdown_page("T", [Section("S", [Curves({"a": [(0, 1)]})])], tmp_path)
