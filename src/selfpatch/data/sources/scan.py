"""Search for images in folders of any nesting, in tar shards, and in text files that list images, folders and shards.

A shard counts as a folder of its members.
"""

from __future__ import annotations

import os
import posixpath
from collections import deque
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
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._compressed: str | None = None  # a compressed shard that was skipped
        self.stamps: list[SourceStamp] = []

    def images(self, name: str) -> list[ImageEntry]:
        """Return the images of a shard, or of a folder and all folders below it, sorted.

        Raises:
            ValueError: there are none, or a folder or shard cannot be read.
        """
        path = os.path.join(self._root, name) if name else self._root
        try:
            images = self._folder(name) if os.path.isdir(path) else self._shard(name)
        except OSError as error:
            raise ValueError(
                f"cannot look through {error.filename}: {error.strerror}; make it readable, or list other images"
            ) from None
        if not images:
            refuse_compressed(self._compressed or "")
            raise ValueError(
                f"no images in {path}; files with these endings are read: {' '.join(EXTENSIONS)}, "
                f"also in {SHARD} shards"
            )
        return images

    def _shard(self, path: str) -> list[ImageEntry]:
        file = os.path.join(self._root, path)
        self.stamps.append(SourceStamp.of(path, os.stat(file)))
        images = shard_images(file, is_image)
        length = len(os.fsencode(path))
        return sorted(ImageEntry(os.fsencode(f"{path}/{name}"), length, *extent) for name, extent in images.items())

    def _folder(self, start: str) -> list[ImageEntry]:
        """Skip hidden files and folders; follow links to folders, each folder once."""
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
                    images += self._shard(path)
                elif is_compressed_shard(entry.name):
                    self._compressed = os.path.join(self._root, path)
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
    return Listing.of_entries(search.images("")), search.stamps


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
        return Listing.of_entries(search.images(path.name)), search.stamps
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


def _search_line(search: Search, path: Path, line: bytes) -> list[ImageEntry]:
    name = os.fsdecode(line)
    if not _is_image_line(line):
        if is_shard(name) or os.path.isdir(path.parent / name):
            return search.images(name)
        refuse_compressed(str(path.parent / name))
    return [ImageEntry(line)]
