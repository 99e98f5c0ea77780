"""Printing: texts are data, and a print that fails fails nothing else."""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console
from rich.table import Table

from selfpatch.core.console import WIDTH, ForgivingStream, PlainConsole, forgiving_output, in_lines, literal

NAMES = ["road [wet]", "car [/parked]", ":smile:", "\x1b[31mred", "two\nlines", os.fsdecode(b"caf\xe9"), "gpj.\u202e"]
SHOWN = ["road [wet]", "car [/parked]", ":smile:", "\\x1b[31mred", "two\\nlines", "caf\\xe9", "gpj.\\u202e"]


def test_lines_are_printed_as_they_are() -> None:
    out = io.StringIO()
    PlainConsole(file=out, width=20).say(*NAMES, "x" * 50)
    assert out.getvalue().splitlines() == [*SHOWN, "x" * 50]


@pytest.mark.parametrize("kind", [PlainConsole, Console])
def test_tables_are_printed_as_they_are(kind: type[Console]) -> None:
    out = io.StringIO()
    table = Table(title=literal("[red]", "table.title"), caption=literal("a [/x]\nb"))
    table.add_column(literal("[b]name[/b]"))
    for name in NAMES:
        table.add_row(literal(name))
    kind(file=out, width=60, force_terminal=False).print(table)
    text = out.getvalue()
    assert all(name in text for name in [*SHOWN[:4], *SHOWN[5:], "[b]name[/b]", "[red]", "a [/x]"])


def test_strings_of_a_table_are_no_markup_on_the_console() -> None:
    out = io.StringIO()
    table = Table("[b]name[/b]", title="[/x]")
    table.add_row("[red]caf\udce9")
    PlainConsole(file=out, width=60).print(table, "[/y]")
    assert all(text in out.getvalue() for text in ("[b]name[/b]", "[/x]", "[red]caf\\xe9", "[/y]"))


def test_what_an_encoding_lacks_is_escaped() -> None:
    raw = io.BytesIO()
    stream = ForgivingStream(io.TextIOWrapper(raw, encoding="ascii"))
    assert stream.write("caf\u00e9 \udce9") == 6
    stream.flush()
    assert raw.getvalue() == b"caf\\xe9 \\udce9"
    assert stream.lost is None
    assert stream.encoding == "ascii"


class Broken(io.StringIO):
    """A stream that cannot be written."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_stream_that_cannot_be_written_raises_nothing() -> None:
    closed = io.StringIO()
    closed.close()
    for stream in (ForgivingStream(Broken()), ForgivingStream(closed)):
        assert stream.write("lost") == 4
        stream.flush()
        assert stream.lost is not None
    PlainConsole(file=Broken()).say("lost")


@pytest.mark.parametrize(
    ("stdout", "said"), [(Broken, "selfpatch: some output is lost, .*No space left on device"), (io.StringIO, "^$")]
)
def test_lost_output_is_told_at_the_end(stdout: type[io.StringIO], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    error, out = io.StringIO(), stdout()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", error)
    with forgiving_output():
        print("a result")
    assert sys.stdout is out
    assert re.match(said, error.getvalue())


CHILD = """
import sys, os
from selfpatch.core.console import console, forgiving_output
with forgiving_output():
    opened = open(os.devnull, "w")
    print("first", flush=True)
    for _ in range(3000):
        console.say("x" * 50)
    assert opened.fileno() > 2
    open(sys.argv[1], "w").write("finished")
"""


@pytest.mark.slow
@pytest.mark.parametrize("redirection", ["| head -n 1", ">&-", ">&- 2>&- <&-", "> /dev/full"])
def test_the_program_runs_to_its_end_whoever_reads(redirection: str, tmp_path) -> None:
    command = f'"$0" -c "$1" "$2" {redirection}; exit ${{PIPESTATUS[0]}}'
    arguments = [sys.executable, CHILD, str(tmp_path / "done")]
    done = subprocess.run(["bash", "-c", command, *arguments], capture_output=True, text=True)
    assert (tmp_path / "done").read_text() == "finished"
    assert done.returncode == 0
    assert ("No space left on device" in done.stderr) == (redirection == "> /dev/full")
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_items_stay_whole_on_lines_that_fit() -> None:
    items = [f"number {i} 0.5000" for i in range(9)] + ["x" * 100]
    lines = in_lines(items)
    assert [item for line in lines for item in line.split("   ")] == items
    assert max(map(len, lines[:-1])) <= WIDTH
    assert len(lines) == 4
    assert in_lines([]) == []
