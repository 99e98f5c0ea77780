"""Looks for images: in folders of any nesting, in tar shards, and in text files that name images, folders and shards.

A shard counts as a folder that holds what the shard does.
"""

from __future__ import annotations

import os
import posixpath
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from selfpatch.data.sources.cache import ImageEntry, Listing, SourceStamp
from selfpatch.data.sources.shards import SHARD, is_compressed_shard, is_shard, refuse_compressed, shard_images

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga"),
)
"""File names that are taken for images, in lower case; Pillow reads them all."""

_ENCODED_EXTENSIONS = frozenset(map(os.fsencode, EXTENSIONS))


def is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


class Search:
    """Looks through folders and shards, whose paths are relative to a root or absolute.

    Attributes:
        watched: all that was looked through, so that it can be told whether looking again would find the same.
        compressed: a compressed shard that was passed by, if there was one.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self.watched: list[SourceStamp] = []
        self.compressed: str | None = None

    def shard(self, path: str) -> list[ImageEntry]:
        """The images in a shard, sorted.

        Raises:
            ValueError, OSError: as `shards.shard_images`.
        """
        place = os.path.join(self._root, path)
        self.watched.append(SourceStamp.of(path, os.stat(place)))
        images = shard_images(place, is_image)
        length = len(os.fsencode(path))
        return sorted(ImageEntry(os.fsencode(f"{path}/{name}"), length, *extent) for name, extent in images.items())

    def folder(self, start: str) -> list[ImageEntry]:
        """The images in a folder and all below it, sorted. Hidden files and folders are skipped; links to folders are
        followed, each folder once.

        Raises:
            ValueError, OSError: a folder cannot be read, or a shard: as `shards.shard_images`.
        """
        images: list[ImageEntry] = []
        seen: set[tuple[int, int]] = set()
        real, linked = deque([start]), deque[str]()
        while real or linked:  # real folders first: one that a link leads to as well keeps its own name
            folder = (real or linked).popleft()
            status = os.stat(os.path.join(self._root, folder))
            if (status.st_dev, status.st_ino) in seen:  # a second link to it, or a cycle
                continue
            seen.add((status.st_dev, status.st_ino))
            self.watched.append(SourceStamp.of(folder, status))
            for entry in self._visible(folder):
                path = posixpath.join(folder, entry.name)
                if entry.is_dir():
                    (linked if entry.is_symlink() else real).append(path)
                elif is_image(entry.name):
                    images.append(ImageEntry(os.fsencode(path)))
                elif is_shard(entry.name):
                    images += self.shard(path)
                elif is_compressed_shard(entry.name):
                    self.compressed = os.path.join(self._root, path)
        return sorted(images)

    def _visible(self, folder: str) -> list[os.DirEntry[str]]:
        with os.scandir(os.path.join(self._root, folder)) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)


def search_folder(root: str) -> tuple[Listing, list[SourceStamp]]:
    """All images under a folder, sorted by their paths, which are relative to it; and what to watch.

    Raises:
        ValueError: there is none, or not all of the folder can be read.
    """
    search = Search(root)
    try:
        images = search.folder("")
    except OSError as error:
        raise ValueError(
            f"cannot look through {root}: {error}; make all of it readable, or give a list of paths"
        ) from None
    if not images:
        raise _nothing_found(root, search)
    return Listing.pack(images), search.watched


def search_file(path: Path) -> tuple[Listing, list[SourceStamp]]:
    """The images of a shard, sorted, or those that a text file names, in its order; and what to watch.

    Paths are relative to the file's folder, where they are not absolute in the text file.

    Raises:
        ValueError: it is neither, it names no image, or what it names cannot be looked through.
    """
    refuse_compressed(str(path))
    search = Search(str(path.parent))
    if is_shard(path.name):
        return Listing.pack(_named(search, path, path.name)), search.watched
    status = os.stat(path)
    lines = _lines(path)
    if all(_is_image_line(line) for line in lines):
        return Listing.of_files(lines), []
    itself = SourceStamp.of(path.name, status)
    images = [image for line in lines for image in _of_line(search, path, line)]
    return Listing.pack(images), [itself, *search.watched] if search.watched else []


def _lines(path: Path) -> list[bytes]:
    text = path.read_bytes()
    if b"\0" in text:
        raise ValueError(
            f"{path} is not a text file; give a folder of images, or a text file with one path a line, "
            f"or a {SHARD} shard"
        )
    lines = (line.strip() for line in text.removeprefix(b"\xef\xbb\xbf").splitlines())
    paths = [line for line in lines if line and not line.startswith(b"#")]
    if not paths:
        raise ValueError(f"{path} names no images; write one path a line")
    return paths


def _is_image_line(line: bytes) -> bool:
    """Judged by its ending alone: looking at a million files would take minutes on a network drive."""
    return line[line.rfind(b".") :].lower() in _ENCODED_EXTENSIONS


def _of_line(search: Search, path: Path, line: bytes) -> Iterator[ImageEntry]:
    name = os.fsdecode(line)
    if _is_image_line(line):
        yield ImageEntry(line)
    elif is_shard(name) or os.path.isdir(path.parent / name):
        yield from _named(search, path, name)
    else:
        refuse_compressed(str(path.parent / name))
        yield ImageEntry(line)


def _named(search: Search, path: Path, name: str) -> list[ImageEntry]:
    """The images of a folder or shard that a file names, or of the file itself."""
    place = path.parent / name
    try:
        images = search.folder(name) if place.is_dir() else search.shard(name)
    except OSError as error:
        raise ValueError(f"cannot look through {error.filename}: {error.strerror}; give what can be read") from None
    if not images:
        raise _nothing_found(str(place), search)
    return images


def _nothing_found(place: str, search: Search) -> ValueError:
    if search.compressed is not None:
        refuse_compressed(search.compressed)
    return ValueError(
        f"no images in {place}; files with these endings are read: {' '.join(EXTENSIONS)}, also in {SHARD} shards"
    )
