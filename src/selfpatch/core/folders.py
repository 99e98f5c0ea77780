"""Entries of folders of a data set, without what operating systems and tools leave in them."""

import os
import posixpath
from collections import deque
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

LITTER = frozenset(
    ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "@eadir", "$recycle.bin", "lost+found")
)
"""Names, in lower case, that macOS, Windows, network drives and file systems make and no data set means."""


def is_hidden(name: str) -> bool:
    """Return whether an entry is passed over: its name begins with a dot (`._x.jpg`), or is one of LITTER."""
    return name.startswith(".") or name.lower() in LITTER


def visible_entries(folder: Path) -> list[Path]:
    """Return the entries of a folder that are not hidden, sorted by name.

    Raises:
        ValueError: there is no such folder, or it cannot be read.
    """
    try:
        return sorted(folder / name for name in os.listdir(folder) if not is_hidden(name))
    except OSError as error:
        raise ValueError(f"cannot look through {folder}: {error.strerror or error}") from None


def subfolders(folder: Path) -> list[Path]:
    """Return the visible folders in a folder, sorted; `visible_entries` explains the errors."""
    return [path for path in visible_entries(folder) if path.is_dir()]


def stems_in(folder: Path, suffix: str) -> list[str]:
    """Return the sorted names, without their suffix, of the visible files with it in a folder; none without folder."""
    if not folder.is_dir():
        return []
    return [path.stem for path in visible_entries(folder) if path.suffix == suffix]


def files_below(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the visible files at any depth below a folder that have one of the suffixes (in lower case), sorted.

    Raises:
        ValueError: there is no such folder, or one of the folders cannot be read.
    """
    try:
        names = [name for walked, _, files in walk(str(folder)) for name in (posixpath.join(walked, f) for f in files)]
    except OSError as error:
        raise ValueError(f"cannot look through {error.filename}: {error.strerror or error}") from None
    return sorted(folder / name for name in names if os.path.splitext(name)[1].lower() in suffixes)


def walk(root: str) -> Iterator[tuple[str, os.stat_result, list[str]]]:
    """Yield each visible folder at and below a root: its path below the root, its state, and its visible files, sorted.

    Links to folders are followed, each folder once; real folders come first, so that one that a link leads to as well
    keeps its own name. The root's own path is empty. Regular files count, and links that lead nowhere, so that whoever
    reads one can tell; pipes, sockets and devices do not. A folder that is removed meanwhile is passed over.

    Raises:
        OSError: a folder cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    real, linked = deque([""]), deque[str]()
    while real or linked:
        folder = (real or linked).popleft()
        path = os.path.join(root, folder) if folder else root
        try:
            status = os.stat(path)
            with os.scandir(path) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except FileNotFoundError:
            if folder:
                continue
            raise
        if (status.st_dev, status.st_ino) in seen:  # a second link to it, or a cycle
            continue
        seen.add((status.st_dev, status.st_ino))
        files = []
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if _is(entry.is_dir):
                (linked if entry.is_symlink() else real).append(posixpath.join(folder, entry.name))
            elif _is(entry.is_file) or (entry.is_symlink() and not os.path.exists(entry.path)):
                files.append(entry.name)
        yield folder, status, files


def _is(question: Callable[[], bool]) -> bool:
    """Ask an entry whether it is a folder or a file; a link that leads to itself is neither."""
    try:
        return question()
    except OSError:
        return False
