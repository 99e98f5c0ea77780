"""One HTML page of text, tables, pictures and curves that needs no other file and no network."""

import base64
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from selfpatch.core.atomic_io import write_atomically
from selfpatch.core.text import format_number, visible
from selfpatch.visualization.curves import Point, curves_svg, finite

MIME = {f".{suffix}": f"image/{suffix}" for suffix in ("png", "jpeg", "gif", "webp")}
MIME |= {".jpg": "image/jpeg", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar = "text"
    text: str


@dataclass(frozen=True)
class Link:
    """A link to a file next to the page."""

    kind: ClassVar = "link"
    text: str
    file: str


@dataclass(frozen=True)
class FormattedNumber:
    """A number as it is to be read, such as `43.4 ± 0.3`; a line break keeps long ones narrow."""

    text: str
    strong: bool = False
    mark: str = ""
    """Sign of a footnote, after the number."""


Cell = str | float | FormattedNumber | None


@dataclass(frozen=True)
class Table:
    """Rows of cells, as many as there are columns; numbers have four significant digits, None is a dash."""

    kind: ClassVar = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: str = ""
    """Line that a click opens the table below; if empty, the table is open."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"the row {list(row)} has {len(row)} cells; give one for each of {list(self.columns)}")

    @property
    def numeric(self) -> list[bool]:
        """Flags of the columns: True if a column holds no words, so that it stands flush right."""
        return [all(not isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns))]


@dataclass(frozen=True)
class Picture:
    """An image file, copied into the page."""

    kind: ClassVar = "picture"
    path: str | Path
    caption: str = ""

    @property
    def alt(self) -> str:
        """Text for readers who do not see the image."""
        return self.caption or Path(self.path).stem

    def data_uri(self) -> str:
        """Return the image as a data URI."""
        path = Path(self.path)
        if path.suffix.lower() not in MIME:
            raise ValueError(f"{path} cannot be put into a page; use one of: {', '.join(MIME)}")
        return _data_uri(path.read_bytes(), path.suffix)


@dataclass(frozen=True)
class Curves:
    """Lines through (x, y) points, by name; `curves.points_of` takes them out of the rows of a metrics.jsonl."""

    kind: ClassVar = "curves"
    curves: Mapping[str, Sequence[Point]]
    caption: str = ""
    x_label: str = "step"
    y_label: str = ""
    """Quantity and unit of the values."""
    baselines: Mapping[str, float] = field(default_factory=dict)
    """Values to compare the curves with, by name."""

    @property
    def alt(self) -> str:
        """Names of the curves."""
        return f"{', '.join(name for name, points in self.curves.items() if finite(points))} by {self.x_label}"

    def data_uri(self) -> str:
        """Return the drawing as a data URI."""
        svg = curves_svg(self.curves, x_label=self.x_label, y_label=self.y_label, baselines=self.baselines)
        return _data_uri(svg.encode(), ".svg")


Block = Text | Link | Table | Picture | Curves


@dataclass(frozen=True)
class Section:
    """Blocks below a heading."""

    heading: str
    blocks: Sequence[Block]


def write_report(path: str | Path, title: str, sections: Sequence[Section]) -> Path:
    """Write a self-contained page without scripts, light or dark as the reader's system is, and return its path.

    Raises:
        ValueError: a picture has a format that browsers do not show, or no curve has a point.
        OSError: a picture cannot be read, or the page cannot be written.
    """
    path = Path(path)
    write_atomically(path, _template().render(title=title, sections=sections) + "\n")
    return path


@functools.cache
def _template() -> Any:
    """Return the page's template, compiled once: a suite writes its report after each evaluation."""
    import jinja2

    loader = jinja2.PackageLoader("selfpatch.visualization")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    environment.filters["number"] = format_number
    return environment.get_template("report.html.jinja")


def _shown(value: Any) -> Any:
    """Escape characters of a string that would change the text around it; markup, of another type, has none."""
    return visible(value, keep="\n") if type(value) is str else value


def _data_uri(data: bytes, suffix: str) -> str:
    return f"data:{MIME[suffix.lower()]};base64,{base64.b64encode(data).decode('ascii')}"
