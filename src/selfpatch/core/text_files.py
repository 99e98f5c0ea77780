"""Text files that people and other programs write: lists of names, JSON. One reader for all of them."""

import json
import os
import stat
from pathlib import Path
from typing import Any

BOM = "\ufeff"
"""Byte order mark, which editors on Windows put in front of a text, and joining such files into the middle of one."""
MAX_TEXT, MAX_JSON = 2**28, 2**33
"""Longest texts that are read, in bytes; the largest annotation files of published sets have several gigabytes."""
_WIDE_MARKS = {
    b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16",
}  # fmt: skip


def read_bytes(path: Path, if_missing: str = "check the name", max_bytes: int = MAX_TEXT) -> bytes:
    """Return the content of a file; `read_text` explains the arguments.

    Raises:
        ValueError: there is no such file, it is no regular file (a folder, a pipe), is too long, or cannot be opened.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
            raise ValueError(f"{path} is a {'folder' if path.is_dir() else 'pipe or device'}; give a file")
        if status.st_size > max_bytes:
            raise ValueError(f"{path} has {status.st_size} bytes, more than {max_bytes}; give the right file")
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}; {if_missing}") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from None


def read_text(path: Path, if_missing: str = "check the name", max_bytes: int = MAX_TEXT) -> str:
    r"""Return the text of a UTF-8 file, whatever the locale is, without a byte order mark, its lines ended by `\n`.

    Args:
        path: a file.
        if_missing: what to do if there is no such file; the end of that error.
        max_bytes: longest file that is read, so that a wrong one does not take all memory.

    Raises:
        ValueError: the file cannot be read (`read_bytes`), or is not UTF-8 text.
    """
    content = read_bytes(path, if_missing, max_bytes)
    wide = next((name for mark, name in _WIDE_MARKS.items() if content.startswith(mark)), None)
    if wide is not None:
        raise ValueError(f"{path} is {wide} text; save it as UTF-8, e.g. by `iconv -f {wide} -t UTF-8`")
    if (zero := content.find(b"\0")) >= 0:
        raise ValueError(f"{path} has a zero byte in line {_line(content, zero)}, so it is no text file in UTF-8")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"byte 0x{content[error.start]:02x} in line {_line(content, error.start)}"
        raise ValueError(f"{path} is no text file in UTF-8 ({where}); save it as UTF-8") from None
    return text.removeprefix(BOM).replace("\r\n", "\n").replace("\r", "\n")


def _line(content: bytes, position: int) -> int:
    return content.count(b"\n", 0, position) + 1


def stripped_lines(path: Path, if_missing: str = "check the name") -> list[str]:
    """Return all lines of a text file, also empty ones, without the spaces and byte order marks around them."""
    return [line.strip().strip(BOM).strip() for line in read_text(path, if_missing).split("\n")]


def numbered_lines(path: Path, if_missing: str = "check the name") -> list[tuple[int, str]]:
    """Return the lines of a text file that are not empty, without spaces around them, and their numbers from 1.

    Spaces within a line are kept: one line is one name.

    Raises:
        ValueError: the file cannot be read (`read_text`).
    """
    lines = enumerate(stripped_lines(path, if_missing), start=1)
    return [(number, line) for number, line in lines if line]


def read_json(path: Path, if_missing: str = "check the name", max_bytes: int = MAX_JSON) -> Any:
    """Return the content of a JSON file; `read_text` explains the arguments.

    Raises:
        ValueError: the file cannot be read (`read_text`) or parsed (`parse_json`).
    """
    return parse_json(read_text(path, if_missing, max_bytes), str(path))


def parse_json(text: str, name: str) -> Any:
    """Return the content of a JSON text.

    Args:
        text: the text.
        name: name of the text in errors, e.g. its path.

    Raises:
        ValueError: the text is empty or no JSON, is nested too deeply, or gives one key of an object twice.
    """
    if not text.strip():
        raise ValueError(f"{name} is empty; it should hold JSON")
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{name} is not valid JSON ({error.msg}: {where}); write or download it again") from None
    except RecursionError:
        raise ValueError(f"{name} is not usable JSON: it is nested too deeply") from None
    except ValueError as error:  # a key that is given twice, or a number of thousands of digits
        raise ValueError(f"{name} is not usable JSON: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"an object has the key {next(key for key in keys if keys.count(key) > 1)!r} twice")
    return values
