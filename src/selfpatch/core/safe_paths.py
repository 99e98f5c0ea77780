"""Paths made of names that come from a data set, an archive or a checkpoint: they stay inside their folder."""

import os
import re
from pathlib import Path, PureWindowsPath
from typing import Any

from selfpatch.core.text import shown

MAX_NAME_BYTES = 255
"""Longest name of one file on every common file system, in bytes."""


def path_below(folder: Path, name: Any, named_by: object, *, nested: bool = True) -> Path:
    """Return the path of a file or folder that a list, an annotation or an archive names.

    Every such name passes through here, so that no data set can make the program read or write outside of the folder.

    Args:
        folder: the folder that the name belongs to.
        name: the name, of any type: it may come from a file that anybody has written.
        named_by: what names it, e.g. `line 3 of val.txt`; the beginning of the error.
        nested: True if the name may have folders in it, as `dogs/1.jpg`.

    Raises:
        ValueError: the name is no text, is empty, absolute or too long, leads upwards by `..`, has a character that no
            file name can have, or, unless `nested`, has a separator.
    """
    reason = _fault(name, nested)
    if reason is None:
        return folder / name
    form = "a path below" if nested else "the name of one entry of"
    raise ValueError(f"{named_by} names {shown(name, 100)}, which {reason}; it should be {form} {folder}")


def _fault(name: Any, nested: bool) -> str | None:
    """Return what is wrong with a name, or None; separators and drives of Windows count on every system."""
    if not isinstance(name, str):
        return "is no text"
    parts = [part for part in re.split(r"[/\\]", name) if part not in ("", ".")]
    if not parts:
        return "is no name of a file"
    if PureWindowsPath(name).anchor:
        return "is an absolute path"
    if ".." in parts:
        return "leads out of its folder"
    if not nested and (len(parts) > 1 or parts[0] != name):
        return "has a separator of folders"
    try:
        encoded = [os.fsencode(part) for part in parts]
    except UnicodeEncodeError:
        return "is no valid text"
    if b"\0" in b"".join(encoded):
        return "has a zero byte"
    if max(map(len, encoded)) > MAX_NAME_BYTES:
        return f"is longer than {MAX_NAME_BYTES} bytes"
    return None
