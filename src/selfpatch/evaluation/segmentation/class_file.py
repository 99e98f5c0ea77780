"""Class files: the names of a set's classes, and their values in the label files."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from selfpatch.core.text import counted, shown
from selfpatch.core.text_files import stripped_lines

VOID_NAMES = ("void", "unlabelled", "unlabeled", "ignore")
MAX_CLASSES = 255
MAX_VALUE = 65535
"""Largest value of a pixel in a label file, of 16 bits."""

_NUMBERED = re.compile(r"(-?[0-9]+)(?:\s*[,;:=]\s*|[.)]\s+|\s+|$)(.*)")
_NUMBER_BEHIND = re.compile(r".*[,;:=\t]\s*-?[0-9]+")
_HEADERS = ("name", "names", "class", "classes", "class name", "class_name", "label", "labels", "category")
FORM = "write a line `number name` per class, or a line `name` for each of the numbers 0, 1, 2, ..."


class ClassFile(NamedTuple):
    """Names of the classes and of void by their values in the label files, in the order of the file."""

    classes: dict[int, str]
    void: tuple[int, ...]


class _Entry(NamedTuple):
    line: int
    value: int
    name: str


def read_class_file(path: Path) -> ClassFile:
    """Read the classes of a set.

    A line is `number name`, where a comma, a colon, a tab or spaces may stand between the two, or a `name`; the n-th
    name has the number n - 1. Names that VOID_NAMES lists, in upper or lower case, are void. Nothing is renumbered: a
    file that could be meant in two ways is refused.

    Raises:
        ValueError: the file is no text, only some lines have a number, or all have two, a number or a name is there
            twice, a number is no value of a pixel, or there is no class or more than 255.
    """
    lines = stripped_lines(path)
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line]
    if not numbered:
        raise ValueError(f"{path} lists no class; {FORM}")
    matches = [_NUMBERED.fullmatch(line) for _, line in numbered]
    if any(matches):
        entries = [_numbered(path, number, line) for number, line in numbered]
        if all(_NUMBERED.match(entry.name) for entry in entries):
            _refuse(path, entries[0].line, numbered[0][1], "begins with two numbers, as all lines do; leave one")
    else:
        _refuse_doubtful_names(path, lines[: numbered[-1][0]])
        entries = [_Entry(number, value, line) for value, (number, line) in enumerate(numbered)]
    _refuse_repeated(path, entries)
    void = tuple(entry.value for entry in entries if entry.name.lower() in VOID_NAMES)
    classes = {entry.value: entry.name for entry in entries if entry.value not in void}
    if not 1 <= len(classes) <= MAX_CLASSES:
        raise ValueError(f"{path} lists {counted(len(classes), 'class')} besides void; use 1 to {MAX_CLASSES}")
    return ClassFile(classes, void)


def _numbered(path: Path, number: int, line: str) -> _Entry:
    match = _NUMBERED.fullmatch(line)
    if match is None:
        _refuse(path, number, line, "has no number, but other lines have; number all lines or none (a header is none)")
    if not match[2]:
        _refuse(path, number, line, "has a number and no name")
    if len(match[1]) > len(str(MAX_VALUE)) + 1 or not 0 <= int(match[1]) <= MAX_VALUE:
        _refuse(path, number, line, f"has a number that no pixel has; use 0 to {MAX_VALUE}")
    return _Entry(number, int(match[1]), match[2])


def _refuse_doubtful_names(path: Path, lines: Sequence[str]) -> None:
    """Refuse what would shift the numbers of names without numbers, or the names of numbers."""
    for number, line in enumerate(lines, start=1):
        if not line:
            _refuse(path, number, line, "is empty, so that the numbers of the names behind it are in doubt")
        if line.startswith("#") or (number == 1 and line.lower() in _HEADERS):
            _refuse(path, number, line, "looks like a header or a comment and would count as a class; remove it")
    if all(map(_NUMBER_BEHIND.fullmatch, lines)):
        _refuse(path, 1, lines[0], "ends in a number, as all lines do; write the number in front of the name")


def _refuse_repeated(path: Path, entries: Sequence[_Entry]) -> None:
    values: dict[int, _Entry] = {}
    names: dict[str, _Entry] = {}
    for entry in entries:
        if (first := values.setdefault(entry.value, entry)) is not entry:
            reason = f"has the number {entry.value}, as has line {first.line}; each class needs its own"
            _refuse(path, entry.line, entry.name, reason)
        first = names.setdefault(entry.name, entry)
        if first is not entry and entry.name.lower() not in VOID_NAMES:
            _refuse(path, entry.line, entry.name, f"has the name of line {first.line}; each class needs its own")


def _refuse(path: Path, number: int, line: str, reason: str) -> NoReturn:
    raise ValueError(f"line {number} of {path} is {shown(line)}, which {reason}; {FORM}")
