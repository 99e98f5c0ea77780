"""Options of a command as a dataclass, read by tyro; its page of complaint becomes one sentence."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
from typing import Any

import tyro

Flat = tyro.conf.arg(name="")
"""Metadata of a field whose own fields are options without a prefix: `config: Annotated[KNNConfig, Flat]`."""


def read_options(kind: Any, command: str, arguments: list[str], **tyro_options: Any) -> Any:
    """Return the options of a command.

    Args:
        kind: dataclass of the options.
        command: name of the command, for its help and for errors.
        arguments: the words that follow the command's name.
        tyro_options: further arguments of `tyro.cli`.

    Raises:
        ValueError: an option is unknown, missing, of the wrong type or out of range.
    """
    page = io.StringIO()
    try:
        with contextlib.redirect_stderr(page):
            return tyro.cli(kind, prog=f"selfpatch {command}", args=arguments, **tyro_options)
    except SystemExit as stopped:
        if not stopped.code:  # --help
            raise
        sentence = _first_paragraph(page.getvalue())
        raise ValueError(f"{sentence}; `selfpatch {command} --help` lists the options") from None


def _first_paragraph(page: str) -> str:
    """Return what tyro complains of, without the frame, the title and the hints below."""
    frame = " \u2500\u2502\u256d\u256e\u256f\u2570-"
    _, *lines = [line.lstrip(frame[:-1]).rstrip(frame) for line in page.splitlines()]
    paragraph = list(itertools.takewhile(bool, itertools.dropwhile(lambda line: not line.strip("-"), lines)))
    if missing := [line for line in paragraph[1:] if line.startswith("--")]:
        paragraph = [paragraph[0], ", ".join(missing)]  # without the help of each
    sentence = " ".join(paragraph).removesuffix(" (required)").rstrip(".")
    return re.sub(r"^Error parsing ([\w.-]+): ", _prefix, sentence)


def _prefix(found: re.Match[str]) -> str:
    """Return what precedes a complaint: an option, or the section of a field, which complains by its name alone."""
    if found[1].startswith("--"):
        return f"{found[1]}: "
    return "" if found[1][0].isupper() else f"{found[1]}."


def peek(arguments: list[str], *names: str) -> dict[str, str]:
    """Return the values of some options, read before all others because they decide the others' defaults."""
    found: dict[str, str] = {}
    for i, argument in enumerate(arguments):
        name, equals, value = argument.removeprefix("--").partition("=")
        if argument.startswith("--") and name in names and (equals or i + 1 < len(arguments)):
            found[name] = value if equals else arguments[i + 1]
    return found


def wants_help(arguments: list[str]) -> bool:
    """Return whether help was asked for."""
    return "--help" in arguments or "-h" in arguments
