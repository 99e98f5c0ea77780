"""Search for images in folders of any nesting, in tar shards, and in text files that list images, folders and shards.

A shard counts as a folder of its members.
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
"""Endings, in lower case, of files that count as images; Pillow reads them all."""

_ENCODED_EXTENSIONS = frozenset(map(os.fsencode, EXTENSIONS))


def is_image(name: str) -> bool:
    """Return whether a file name has the ending of an image."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


class Search:
    """A search through folders and shards, whose paths are absolute or relative to a root.

    Attributes:
        stamps: state of everything that was searched, which tells later whether a new search would find the same.
        compressed: path of a compressed shard that was skipped, if there was one.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self.stamps: list[SourceStamp] = []
        self.compressed: str | None = None

    def shard(self, path: str) -> list[ImageEntry]:
        """Return the images in a shard, sorted.

        Raises:
            ValueError, OSError: as `shards.shard_images`.
        """
        file = os.path.join(self._root, path)
        self.stamps.append(SourceStamp.of(path, os.stat(file)))
        images = shard_images(file, is_image)
        length = len(os.fsencode(path))
        return sorted(ImageEntry(os.fsencode(f"{path}/{name}"), length, *extent) for name, extent in images.items())

    def folder(self, start: str) -> list[ImageEntry]:
        """Return the images in a folder and all folders below it, sorted.

        Hidden files and folders are skipped; links to folders are followed, each folder once.

        Raises:
            ValueError, OSError: a folder cannot be read, or as `shards.shard_images`.
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
            self.stamps.append(SourceStamp.of(folder, status))
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
    """Find all images under a folder.

    Returns:
        The images sorted by their paths, which are relative to the folder, and the stamps of all sources.

    Raises:
        ValueError: there are no images, or a part of the folder cannot be read.
    """
    search = Search(root)
    try:
        images = search.folder("")
    except OSError as error:
        raise ValueError(
            f"cannot look through {root}: {error}; make all of it readable, or give a list of paths"
        ) from None
    if not images:
        raise _no_images(root, search)
    return Listing.of_entries(images), search.stamps


def search_file(path: Path) -> tuple[Listing, list[SourceStamp]]:
    """Find the images of a shard, sorted, or those that a text file lists, in its order.

    Returns:
        The images, whose paths are relative to the file's folder unless listed as absolute, and the stamps of all
        sources (none if the text file lists image files only).

    Raises:
        ValueError: it is neither, it lists no image, or a listed folder or shard cannot be searched.
    """
    refuse_compressed(str(path))
    search = Search(str(path.parent))
    if is_shard(path.name):
        return Listing.of_entries(_search_named(search, path, path.name)), search.stamps
    status = os.stat(path)
    lines = _lines(path)
    if all(_is_image_line(line) for line in lines):
        return Listing.of_files(lines), []
    images = [image for line in lines for image in _search_line(search, path, line)]
    return Listing.of_entries(images), [SourceStamp.of(path.name, status), *search.stamps] if search.stamps else []


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
    """Judge a line by its ending alone: looking at a million files would take minutes on a network drive."""
    return line[line.rfind(b".") :].lower() in _ENCODED_EXTENSIONS


def _search_line(search: Search, path: Path, line: bytes) -> Iterator[ImageEntry]:
    name = os.fsdecode(line)
    if _is_image_line(line):
        yield ImageEntry(line)
    elif is_shard(name) or os.path.isdir(path.parent / name):
        yield from _search_named(search, path, name)
    else:
        refuse_compressed(str(path.parent / name))
        yield ImageEntry(line)


def _search_named(search: Search, path: Path, name: str) -> list[ImageEntry]:
    """Return the images of a folder or shard that a text file lists, or of the shard itself."""
    source = path.parent / name
    try:
        images = search.folder(name) if source.is_dir() else search.shard(name)
    except OSError as error:
        raise ValueError(f"cannot look through {error.filename}: {error.strerror}; give what can be read") from None
    if not images:
        raise _no_images(str(source), search)
    return images


def _no_images(source: str, search: Search) -> ValueError:
    if search.compressed is not None:
        refuse_compressed(search.compressed)
    return ValueError(
        f"no images in {source}; files with these endings are read: {' '.join(EXTENSIONS)}, also in {SHARD} shards"
    )
