"""Blocks of a report as Markdown that shows text as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from selfpatch.visualization.markdown import markdown_page, plain
from selfpatch.visualization.report import Curves, FormattedNumber, Section, Table, Text


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
    blocks = [
        Text("- no list"),
        Text("0.5 is a number"),
        Table(["a", "n"], [["x", FormattedNumber("1 ± 2", True, "†")]]),
    ]
    text = markdown_page("# T", [Section("S", blocks)], tmp_path)
    assert text == (
        "# # T\n\n## S\n\n\\- no list\n\n0.5 is a number\n\n| a | n |\n| --- | ---: |\n| x | **1 ± 2** † |\n"
    )
    with pytest.raises(ValueError, match="no form for Curves"):
        markdown_page("T", [Section("S", [Curves({"a": [(0, 1)]})])], tmp_path)
