"""Search for images in folders of any nesting, in tar shards, and in text files that list images, folders and shards.

A shard counts as a folder of its members.
"""

import os
import posixpath
import re
import stat
from codecs import BOM_UTF8
from pathlib import Path

from selfpatch.core.folders import walk
from selfpatch.data.sources.cache import ImageEntry, Listing, SourceStamp
from selfpatch.data.sources.shards import SHARD, is_compressed_shard, is_shard, refuse_compressed, shard_images

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga"),
)
"""Endings, in lower case, of files that count as images; Pillow reads them all."""

_ENCODED_EXTENSIONS = frozenset(map(os.fsencode, EXTENSIONS))


def search(source: Path) -> tuple[Listing, list[SourceStamp]]:
    """Find the images under a folder or in a shard, sorted, or those that a text file lists, in its order.

    Returns:
        The images, whose paths are relative to the folder, or to the file's folder unless listed as absolute, and the
        stamps of everything that was searched (none if a text file lists image files only).

    Raises:
        ValueError: there are no images, a folder or shard cannot be read, or a file is neither a shard nor a text.
    """
    if source.is_dir():
        found = _Search(str(source))
        return Listing.of_entries(found.images("")), found.stamps
    refuse_compressed(str(source))
    found = _Search(str(source.parent))
    if is_shard(source.name):
        return Listing.of_entries(found.images(source.name)), found.stamps
    status = os.stat(source)
    lines = _lines(source)
    if all(map(_is_image_line, lines)):
        return Listing.of_files(lines), []
    images = [image for line in lines for image in found.line(line)]
    return Listing.of_entries(images), [SourceStamp.of(source.name, status), *found.stamps] if found.stamps else []


class _Search:
    """Search through folders and shards, whose paths are absolute or relative to a root."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.stamps: list[SourceStamp] = []
        self.compressed = ""  # a compressed shard that was skipped

    def path(self, name: str) -> str:
        return os.path.join(self.root, name) if name else self.root

    def line(self, line: bytes) -> list[ImageEntry]:
        """Return the images that one line of a text file stands for."""
        name = os.fsdecode(line)
        if not _is_image_line(line):
            if is_shard(name) or os.path.isdir(self.path(name)):
                return self.images(name)
            refuse_compressed(self.path(name))
            if not os.path.exists(self.path(name)):
                is_path = b"/" in line  # no heading
                advice = "no label" if _has_columns(line) else f"relative to {self.root}" if is_path else "no heading"
                raise ValueError(f"the list names {name!r}, and there is no such file; write one path a line, {advice}")
        return [ImageEntry(line)]

    def images(self, name: str) -> list[ImageEntry]:
        """Return the images of a shard, or of a folder and all folders below it, sorted."""
        try:
            images = self.folder(name) if os.path.isdir(self.path(name)) else self.shard(name)
        except OSError as error:
            raise ValueError(
                f"cannot look through {error.filename}: {error.strerror}; make it readable, or list other images"
            ) from None
        if not images:
            refuse_compressed(self.compressed)
            raise ValueError(
                f"no images in {self.path(name)}; files with these endings are read: {' '.join(EXTENSIONS)}, "
                f"also in {SHARD} shards"
            )
        return sorted(images)

    def shard(self, name: str) -> list[ImageEntry]:
        status = os.stat(self.path(name))
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
            raise ValueError(f"{self.path(name)} is no regular file; give a tar, or take it out")
        self.stamps.append(SourceStamp.of(name, status))
        members, length = shard_images(self.path(name), _is_image), len(os.fsencode(name))
        return [ImageEntry(os.fsencode(f"{name}/{member}"), length, *extent) for member, extent in members.items()]

    def folder(self, start: str) -> list[ImageEntry]:
        """Return the images in a folder and below it, in any order."""
        images: list[ImageEntry] = []
        for folder, status, files in walk(self.path(start)):
            below = posixpath.join(start, folder) if folder else start
            self.stamps.append(SourceStamp.of(below, status))
            for file in files:
                name = posixpath.join(below, file)
                if _is_image(file):
                    images.append(ImageEntry(os.fsencode(name)))
                elif is_shard(file):
                    images += self.shard(name)
                elif is_compressed_shard(file):
                    self.compressed = self.path(name)
        return images


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _is_image_line(line: bytes) -> bool:
    """Judge a line by its ending alone: looking at a million files would take minutes on a network drive."""
    return line[line.rfind(b".") :].lower() in _ENCODED_EXTENSIONS


def _has_columns(line: bytes) -> bool:
    """Return whether a line is the name of an image with something behind it, e.g. `a.jpg 3` or `a.jpg,cat`."""
    return any(_is_image_line(line[: mark.start()]) for mark in re.finditer(rb"[\s,;]", line))


def _lines(path: Path) -> list[bytes]:
    """Return the paths that a list names, as bytes: unlike the names of a data set, they may be of any encoding."""
    with open(path, "rb") as file:
        text = file.read(2**16)
        if b"\0" not in text:  # a film, say, is not read any further
            text += file.read()
    if b"\0" in text:
        raise ValueError(
            f"{path} is not a text file; give a folder of images, or a text file with one path a line, "
            f"or a {SHARD} shard"
        )
    lines = (line.removeprefix(BOM_UTF8).strip() for line in text.splitlines())  # joined files have marks inside
    paths = [line for line in lines if line and not line.startswith(b"#")]
    if not paths:
        raise ValueError(f"{path} names no images; write one path a line")
    return paths
