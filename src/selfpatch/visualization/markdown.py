"""A report as Markdown: the same sections as on the HTML page, with links to the pictures."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from selfpatch.core.text import format_number, visible
from selfpatch.visualization.report import Block, Cell, FormattedNumber, Picture, Section, Table, Text

MARKUP = re.compile(r"[\\|<>*`\[\]~$]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)")
"""Characters that would be read as markup; an underscore within a word or an ampersand outside an entity would not."""
AT_LINE_START = re.compile(r"^(\d*)([#+=.)-]+(?:\s|$))")
"""Beginning of a heading or a list."""


def markdown_page(title: str, sections: Sequence[Section], folder: Path) -> str:
    """Return the text of a page that will lie in `folder`, relative to which its pictures are linked.

    Raises:
        ValueError: a block has no form in Markdown; write curves to a file, and give it as a `Picture`.
    """
    parts = [f"# {plain(title)}"]
    for section in sections:
        parts += [f"## {plain(section.heading)}", *(_block(block, folder) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """Return the text on one line, with everything escaped that would be markup."""
    return MARKUP.sub(r"\\\g<0>", visible(" ".join(text.split())))


def _block(block: Block, folder: Path) -> str:
    match block:
        case Text(text):
            return AT_LINE_START.sub(r"\1\\\2", plain(text))
        case Picture(path, caption):
            return f"![{plain(caption)}](<{quote(Path(os.path.relpath(path, folder)).as_posix())}>)"
        case Table(columns, rows):
            rule = ["---:" if numeric else "---" for numeric in block.numeric]
            head, *body = ([_cell(value) for value in row] for row in (columns, *rows))
            return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *body))
    raise ValueError(f"Markdown has no form for {type(block).__name__}; write it to a file, and give it as a Picture")


def _cell(value: Cell) -> str:
    if value is None:
        return "–"
    if isinstance(value, FormattedNumber):
        text = plain(value.text.replace("\n", " "))
        return (f"**{text}**" if value.strong else text) + (f" {plain(value.mark)}" if value.mark else "")
    return format_number(value, ".4f") if isinstance(value, float) else plain(str(value))
