"""One HTML page on how a run went, with its images, curves and tables inside: it needs no other file and no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from selfpatch.core.atomic_io import write_atomically
from selfpatch.visualization.curves import Point, curves_svg

MIME = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".gif": "image/gif", ".webp": "image/webp"}

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --muted: #656d76; --line: #d8dee4; --paper: #ffffff;
  --alert: #b35900; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --muted: #9198a1; --line: #30363d; --paper: #0d1117; --alert: #f0883e; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1040px; padding: 40px 24px 80px; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 30px; font-weight: 600; line-height: 1.25; margin: 0 0 8px; }
h2 { font-size: 20px; font-weight: 600; margin: 48px 0 12px; }
p { margin: 0 0 12px; max-width: 44em; }
.scroll { overflow-x: auto; margin: 0 0 16px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 18px 6px 0; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
th { color: var(--muted); font-weight: 500; white-space: normal; vertical-align: bottom; }
.number { text-align: right; }
sup { margin-left: 2px; color: var(--alert); font-weight: 600; line-height: 0; }
figure { margin: 0 0 24px; }
img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line); border-radius: 8px; }
svg { display: block; width: 100%; max-width: 880px; height: auto; font-family: inherit; }
figcaption, .legend { color: var(--muted); font-size: 14px; margin-top: 8px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; }
.legend i { display: inline-block; width: 10px; height: 10px; border-radius: 50%; margin-right: 7px; }
"""


@dataclass(frozen=True)
class Text:
    text: str

    def html(self) -> str:
        return f"<p>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Written:
    """A number as it is to be read, such as `43.4 ± 0.3`; it stands where numbers stand.

    Attributes:
        strong: written bold, as the best of its column.
        mark: that of a footnote, after the number.
    """

    text: str
    strong: bool = False
    mark: str = ""

    def html(self) -> str:
        text = f"<strong>{escape(self.text)}</strong>" if self.strong else escape(self.text)
        return f"{text}<sup>{escape(self.mark)}</sup>" if self.mark else text


Cell = str | float | Written | None


@dataclass(frozen=True)
class Table:
    """Numbers are written with four significant digits and set flush right; None is a dash.

    Raises:
        ValueError: a row has more or fewer cells than there are columns.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"the row {list(row)} has {len(row)} cells; one for each of {list(self.columns)} is needed"
                )

    @property
    def numeric(self) -> list[bool]:
        """Of each column, whether it holds no words."""
        return [all(not isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns))]

    def html(self) -> str:
        """The table, scrolling sideways where the page is too narrow for it."""
        numeric = self.numeric
        head = "".join(_cell("th", name, right) for name, right in zip(self.columns, numeric, strict=True))
        body = "".join(
            "<tr>" + "".join(_cell("td", value, right) for value, right in zip(row, numeric, strict=True)) + "</tr>"
            for row in self.rows
        )
        return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


@dataclass(frozen=True)
class Picture:
    """An image file, copied into the page."""

    path: str | Path
    caption: str = ""

    def html(self) -> str:
        """The image as a data URI.

        Raises:
            ValueError: the file's ending is not that of an image that browsers show.
        """
        path = Path(self.path)
        if path.suffix.lower() not in MIME:
            raise ValueError(f"{path} cannot be put into a page; use one of: {', '.join(MIME)}")
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        caption = escape(self.caption)
        image = f'<img src="data:{MIME[path.suffix.lower()]};base64,{data}" alt="{caption or escape(path.stem)}">'
        return _figure(image, caption)


@dataclass(frozen=True)
class Curves:
    """Lines through (x, y) points, by name; `curves.points_of` takes them out of the rows of a metrics.jsonl."""

    curves: Mapping[str, Sequence[Point]]
    caption: str = ""
    x_label: str = "step"

    def html(self) -> str:
        return _figure(curves_svg(self.curves, x_label=self.x_label), escape(self.caption))


Block = Text | Table | Picture | Curves


@dataclass(frozen=True)
class Section:
    heading: str
    blocks: Sequence[Block]

    def html(self) -> str:
        return f"<section><h2>{escape(self.heading)}</h2>{''.join(block.html() for block in self.blocks)}</section>"


def write_report(path: str | Path, title: str, sections: Sequence[Section]) -> Path:
    """Writes a self-contained page, light or dark as the reader's system is, without scripts.

    Returns:
        `path`.

    Raises:
        ValueError: a picture is of no kind that browsers show, or no curve has a point.
        OSError: a picture cannot be read, or the page cannot be written.
    """
    path = Path(path)
    body = "\n".join(section.html() for section in sections)
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<h1>{escape(title)}</h1>
{body}
</body>
</html>
"""
    write_atomically(path, page)
    return path


def _cell(tag: str, value: Cell, right: bool) -> str:
    attribute = ' class="number"' if right else ""
    return f"<{tag}{attribute}>{_written(value)}</{tag}>"


def _written(value: Cell) -> str:
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, Written):
        return value.html()
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))


def _figure(content: str, caption: str) -> str:
    line = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{content}{line}</figure>"
