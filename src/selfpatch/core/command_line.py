"""The command that this process runs, for records of how files came about."""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

from selfpatch.core.text import shell

_words: ContextVar[tuple[str, ...] | None] = ContextVar("command_line", default=None)


@contextlib.contextmanager
def running(arguments: Sequence[str]) -> Iterator[None]:
    """Let `current_command` name the program and these arguments inside the context."""
    token = _words.set(("selfpatch", *arguments))
    try:
        yield
    finally:
        _words.reset(token)


def current_command() -> str:
    """Return the command line, as a shell reads it; for a script that calls the Python functions, that script's."""
    return shell(*(_words.get() or ("python", *sys.argv)))
