"""The console that prints for people: texts are data and never markup, and a failed print fails nothing else."""

import contextlib
import errno
import io
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import IO, Any

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from selfpatch.core.text import visible


class ForgivingStream:
    """Text stream whose `write` and `flush` never fail.

    Characters that its encoding lacks are escaped. Once it cannot be written, as when the reader of a pipe is gone, the
    rest is lost: `lost` is the reason.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self.lost: OSError | ValueError | None = None

    def write(self, text: str) -> int:
        """Write a text, as far as possible, and return its length."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError as error:
            with self._noting_losses():
                self._stream.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except (OSError, ValueError) as error:
            self._lose(error)
        return len(text)

    def flush(self) -> None:
        """Write what is in memory, as far as possible."""
        with self._noting_losses():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _noting_losses(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self._lose(error)

    def _lose(self, error: OSError | ValueError) -> None:
        self.lost = self.lost or error
        # Python would try once more to write what is in memory at its end, and fail.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


class PlainConsole(Console):
    """Console of rich on which strings, also in tables, are printed as they are, with escapes for what cannot be.

    `[red]` in a class name is text. It prints to the present `sys.stdout` unless a file is given.
    """

    @property
    def file(self) -> IO[str]:
        """Stream to write to, which never fails."""
        return ForgivingStream(Console.file.fget(self))  # type: ignore[attr-defined, return-value]

    @file.setter
    def file(self, new: IO[str]) -> None:
        Console.file.fset(self, new)  # type: ignore[attr-defined]

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string as text, not as markup; line ends are kept."""
        plain = {"markup": False, "emoji": False, "highlight": False, "highlighter": None}
        return super().render_str(visible(text, keep="\n"), **(options | plain))

    def say(self, *lines: str) -> None:
        """Print each text as one line."""
        for line in lines:
            self.print(visible(line), soft_wrap=True)


console = PlainConsole()


def literal(text: str, style: str = "") -> Text:
    """Return a text for tables, which any console prints as it is."""
    return Text(visible(text, keep="\n"), style)


WIDTH = 80
"""Number of columns of a terminal that tables fit."""


def plain_table(**options: Any) -> Table:
    """Return a table of rich without lines between its columns, so that more of them fit side by side."""
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, caption_justify="left", **options)


class Report(ABC):
    """Base of records that `print`, an interactive Python and a notebook show as the command line does."""

    @abstractmethod
    def __rich__(self) -> RenderableType:
        """Return what the command prints."""

    def __repr__(self) -> str:
        text = io.StringIO()
        PlainConsole(file=text, width=WIDTH, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in text.getvalue().strip("\n").split("\n"))


def in_lines(items: Iterable[str]) -> list[str]:
    """Return items joined to lines of at most `WIDTH` columns, none of them broken unless it alone is longer."""
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + 3 + len(item) <= WIDTH:
            lines[-1] += f"   {item}"
        else:
            lines.append(item)
    return lines


@contextlib.contextmanager
def forgiving_output() -> Iterator[None]:
    """Let no print inside fail; at the end, say on stderr why output is lost, unless nobody wanted to read it."""
    _open_standard_files()
    before = sys.stdout, sys.stderr
    out, error = (ForgivingStream(stream or open(os.devnull, "w")) for stream in before)  # noqa: SIM115
    sys.stdout, sys.stderr = out, error
    try:
        yield
    finally:
        out.flush()
        if out.lost is not None and getattr(out.lost, "errno", None) not in (None, errno.EPIPE):
            print(f"selfpatch: some output is lost, as it could not be written: {out.lost}", file=error)
        error.flush()
        sys.stdout, sys.stderr = before


def _open_standard_files() -> None:
    """Open standard files that are closed: the next file to be opened would take a number and receive the prints."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
