"""A report as Markdown: the same sections as on the HTML page, with pictures shown where they lie."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from selfpatch.visualization.report import Block, Cell, Picture, Section, Table, Text, Written

MARKUP = re.compile(r"[\\|<>*`\[\]~$]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")
"""What would be read as markup; an underscore within a word would not, nor an ampersand that begins no entity."""
AT_LINE_START = re.compile(r"^(\d*)([#+=.)-]+(?:\s|$))")
"""What would begin a heading or a list there."""


def markdown_page(title: str, sections: Sequence[Section], folder: Path) -> str:
    """The page's text.

    Args:
        folder: where the page will lie; pictures are referred to from there.

    Raises:
        ValueError: a block has no form in Markdown; write curves to a file, and give it as a `Picture`.
    """
    parts = [f"# {plain(title)}"]
    for section in sections:
        parts += [f"## {plain(section.heading)}", *(_block(block, folder) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """The text on one line, read as it stands: no character of it is markup."""
    return MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def _block(block: Block, folder: Path) -> str:
    if isinstance(block, Text):
        return AT_LINE_START.sub(r"\1\\\2", plain(block.text))
    if isinstance(block, Picture):
        return f"![{plain(block.caption)}](<{quote(Path(os.path.relpath(block.path, folder)).as_posix())}>)"
    if isinstance(block, Table):
        return _table(block)
    raise ValueError(f"Markdown has no form for {type(block).__name__}; write it to a file, and give it as a Picture")


def _table(table: Table) -> str:
    rule = ["---:" if numeric else "---" for numeric in table.numeric]
    rows = [[_cell(value) for value in row] for row in [table.columns, *table.rows]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [rows[0], rule, *rows[1:]])


def _cell(value: Cell) -> str:
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, Written):
        text = plain(value.text)
        return (f"**{text}**" if value.strong else text) + (f" {plain(value.mark)}" if value.mark else "")
    return f"{value:.4f}" if isinstance(value, float) else plain(str(value))
