"""Which images there are: a folder of any nesting, or a text file of paths, as an index that a million paths fit into.

Only numpy is imported, so that the command line can count the images before anything heavy is loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import zipfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from selfpatch.files import replacing

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga"),
)
"""File names that are taken for images, in lower case; Pillow reads them all."""

CACHE_FORMAT = 1
SETTLED_NS = 2_000_000_000
"""A folder that changed this recently is not cached: a coarse clock could hide the next change behind the same time."""


@dataclass(frozen=True)
class _PathTable:
    """Many paths as two arrays: a list of str would be copied page by page into each forked worker that reads it."""

    characters: np.ndarray  # [total length] uint8, all paths one after the other
    offsets: np.ndarray  # [paths + 1] int64

    @staticmethod
    def pack(paths: Sequence[bytes]) -> _PathTable:
        offsets = np.zeros(len(paths) + 1, np.int64)
        np.cumsum([len(path) for path in paths], out=offsets[1:])
        return _PathTable(np.frombuffer(b"".join(paths), np.uint8), offsets)

    def get(self, i: int) -> bytes:
        return self.characters[self.offsets[i] : self.offsets[i + 1]].tobytes()

    def __len__(self) -> int:
        return len(self.offsets) - 1


class ImageIndex:
    """The images of one source, in a fixed order; an image's number in it is its *place*."""

    def __init__(self, root: str | Path, paths: Sequence[bytes] | _PathTable) -> None:
        """
        Args:
            root: the folder that the paths are relative to.
            paths: relative (or absolute) paths in file-system encoding.
        """
        self.root = os.path.abspath(root)
        self._paths = paths if isinstance(paths, _PathTable) else _PathTable.pack(paths)

    @classmethod
    def open(cls, source: str | Path, cache_dir: Path | None = None) -> ImageIndex:
        """The images under a folder, sorted, or those that a text file names, in its order.

        In a folder, hidden files and folders are skipped and links to folders are followed, each folder once. What was
        found is kept in `cache_dir` and taken from there for as long as no folder's modification time changes.
        In a text file there is one path a line, relative to the file's own folder; blank lines and lines that begin
        with # do not count. Whether the files exist and are images shows when they are read.

        Args:
            source: folder or text file.
            cache_dir: folder for the index; None: `default_cache_dir()`. Where it cannot be written there is no cache.

        Raises:
            ValueError: there is no such folder or file, or no image in it.
        """
        path = Path(source).expanduser()
        if path.is_dir():
            return cls(path, _cached_walk(os.path.realpath(path), cache_dir or default_cache_dir()))
        if path.is_file():
            return cls(path.parent, _read_list(path))
        raise ValueError(
            f"no folder or file {str(source)!r}; give a folder of images, or a text file with one path a line"
        )

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, place: int) -> Path:
        if not 0 <= place < len(self):
            raise IndexError(f"place {place} is outside the index of {len(self)} images")
        return Path(self.root, os.fsdecode(self._paths.get(place)))

    @property
    def classes(self) -> tuple[str, ...]:
        """The root's sub-folders, sorted, where every image lies in one and there are at least two; else empty."""
        return self._labels[0]

    def label(self, place: int) -> int | None:
        """The image's place in `classes`, or None where there are none."""
        classes, labels = self._labels
        return int(labels[place]) if classes else None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the relative paths: the same wherever the folder lies, another when an image came or went."""
        digest = hashlib.sha256(self._paths.offsets.astype("<i8").tobytes())
        digest.update(self._paths.characters.tobytes())
        return digest.hexdigest()[:32]

    def split(self, held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Keeps some images out of training.

        Args:
            held_out: how many; at most a tenth of the images are taken.
            seed: decides which.

        Returns:
            The places to train on and the held-out ones: two sorted int64 arrays that share none and miss none.
        """
        if held_out < 0:
            raise ValueError(f"{held_out} images cannot be held out; use 0 for none")
        held_out = min(held_out, len(self) // 10)
        draws = np.random.Generator(np.random.Philox(key=seed % 2**64)).random(len(self))
        order = np.argsort(draws, kind="stable")
        return np.sort(order[held_out:]), np.sort(order[:held_out])

    @cached_property
    def _labels(self) -> tuple[tuple[str, ...], np.ndarray]:
        parts = [self._paths.get(i).partition(b"/") for i in range(len(self))]
        names = sorted({name for name, _, _ in parts})
        if len(names) < 2 or not all(rest for _, _, rest in parts) or not {b"", b".", b".."}.isdisjoint(names):
            return (), np.zeros(0, np.int32)
        numbers = {name: number for number, name in enumerate(names)}
        return tuple(map(os.fsdecode, names)), np.array([numbers[name] for name, _, _ in parts], np.int32)


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/selfpatch`, or `~/.cache/selfpatch`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "selfpatch"


def _read_list(path: Path) -> list[bytes]:
    text = path.read_bytes()
    if b"\0" in text:
        raise ValueError(f"{path} is not a text file; give a folder of images, or a text file with one path a line")
    lines = (line.strip() for line in text.removeprefix(b"\xef\xbb\xbf").splitlines())
    paths = [line for line in lines if line and not line.startswith(b"#")]
    if not paths:
        raise ValueError(f"{path} names no images; write one path a line")
    return paths


def _walk(root: str) -> tuple[list[bytes], list[bytes], list[int]]:
    """Images, sorted, and the folders they were looked for in, both relative to the root; the folders' times in ns."""
    images, folders, times = [], [], []
    seen: set[tuple[int, int]] = set()
    real, linked = deque([""]), deque[str]()
    while real or linked:  # real folders first: one that a link leads to as well keeps its own name
        folder = (real or linked).popleft()
        status = os.stat(os.path.join(root, folder))
        if (status.st_dev, status.st_ino) in seen:  # a second link to it, or a cycle
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.append(os.fsencode(folder))
        times.append(status.st_mtime_ns)
        with os.scandir(os.path.join(root, folder)) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                relative = f"{folder}/{entry.name}" if folder else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    (linked if entry.is_symlink() else real).append(relative)
                elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                    images.append(os.fsencode(relative))
    return sorted(images), folders, times


def _cached_walk(root: str, cache_dir: Path) -> _PathTable:
    file = cache_dir / f"index-{hashlib.sha256(os.fsencode(root)).hexdigest()[:24]}.npz"
    cached = _load_cache(root, file)
    if cached is not None:
        return cached
    walked_at = time.time_ns()
    try:
        images, folders, times = _walk(root)
    except OSError as error:
        raise ValueError(
            f"cannot look through {root}: {error}; make all of it readable, or give a list of paths"
        ) from None
    if not images:
        raise ValueError(f"no images in {root}; files with these endings are read: {' '.join(EXTENSIONS)}")
    table = _PathTable.pack(images)
    if max(times) < walked_at - SETTLED_NS:
        _save_cache(file, table, _PathTable.pack(folders), np.array(times, np.int64))
    return table


def _load_cache(root: str, file: Path) -> _PathTable | None:
    try:
        with np.load(file, allow_pickle=False) as cache:
            if int(cache["format"]) != CACHE_FORMAT:
                return None
            folders, times = _PathTable(cache["folders"], cache["folder_offsets"]), cache["times"]
            unchanged = all(
                os.stat(os.path.join(root, os.fsdecode(folders.get(i)))).st_mtime_ns == times[i]
                for i in range(len(folders))
            )
            return _PathTable(cache["images"], cache["image_offsets"]) if unchanged else None
    except (
        OSError,
        EOFError,
        KeyError,
        ValueError,
        zipfile.BadZipFile,
    ):  # no cache, a damaged one, or a folder that has gone
        return None


def _save_cache(file: Path, images: _PathTable, folders: _PathTable, times: np.ndarray) -> None:
    # A read-only home is no reason to stop: the next run walks again.
    with contextlib.suppress(OSError), replacing(file) as stream:
        np.savez(
            stream,
            format=np.array(CACHE_FORMAT),
            images=images.characters,
            image_offsets=images.offsets,
            folders=folders.characters,
            folder_offsets=folders.offsets,
            times=times,
        )
