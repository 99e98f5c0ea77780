"""Search for images in folders of any nesting, in containers, and in text files that list images, folders and those.

A container, which is a tar shard, a zip archive or a Parquet file, counts as a folder of its images.
"""

import os
import posixpath
import re
import stat
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable
from pathlib import Path

from selfpatch.core.folders import walk
from selfpatch.data.sources.cache import SourceStamp
from selfpatch.data.sources.containers import ENDINGS, images_in, is_container
from selfpatch.data.sources.conversions import conversion_of
from selfpatch.data.sources.listing import Listing
from selfpatch.data.sources.published import read_local
from selfpatch.data.sources.shards import SHARD, is_compressed_shard, is_shard, refuse_compressed

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".avif", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".tga"),
)
"""Endings, in lower case, of files that count as images; Pillow reads them all."""

NUM_OTHERS = 10
"""Number of files of a folder without images that are looked at for a hint."""

_ENCODED_EXTENSIONS = frozenset(map(os.fsencode, EXTENSIONS))


def search(source: Path) -> tuple[Listing, list[SourceStamp]]:
    """Find the images under a folder or in a container, sorted, or those that a text file lists, in its order.

    Returns:
        The images, whose paths are relative to the folder, or to the file's folder unless listed as absolute, and the
        stamps of everything that was searched (none if a text file lists image files only).

    Raises:
        ValueError: there are no images, a folder or container cannot be read, or a file is neither one nor a text.
    """
    if source.is_dir():
        found = _Search(str(source))
        if (published := read_local(source)) is not None:
            return published
        return Listing.joined(found.images("")), found.stamps
    refuse_compressed(str(source))
    if conversion_of([source.name]) is not None:
        raise NoImagesError(str(source), [source.name])
    found = _Search(str(source.parent))
    if is_container(source.name):
        return Listing.joined(found.images(source.name)), found.stamps
    status = os.stat(source)
    lines = _lines(source)
    if all(map(is_image_line, lines)):
        return Listing.of_files(lines), []
    parts = [part for line in lines for part in found.line(line)]
    return Listing.joined(parts), [SourceStamp.of(source.name, status), *found.stamps] if found.stamps else []


Part = bytes | Listing
"""Path of an image file, or the images in a container."""


class _Search:
    """Search through folders and containers, whose paths are absolute or relative to a root."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.stamps: list[SourceStamp] = []
        self.compressed = ""  # a compressed shard that was skipped
        self.others: list[str] = []  # some files of the present source, until an image is found

    def path(self, name: str) -> str:
        return os.path.join(self.root, name) if name else self.root

    def line(self, line: bytes) -> list[Part]:
        """Return the images that one line of a text file stands for."""
        name = os.fsdecode(line)
        if not is_image_line(line):
            if is_container(name) or os.path.isdir(self.path(name)):
                return self.images(name)
            refuse_compressed(self.path(name))
            if not os.path.exists(self.path(name)):
                is_path = b"/" in line  # no heading
                advice = "no label" if _has_columns(line) else f"relative to {self.root}" if is_path else "no heading"
                raise ValueError(f"the list names {name!r}, and there is no such file; write one path a line, {advice}")
        return [line]

    def images(self, name: str) -> list[Part]:
        """Return the images in a container, or in a folder and all folders below it, sorted."""
        self.others = []
        try:
            parts = self.folder(name) if os.path.isdir(self.path(name)) else [self.container(name)]
        except OSError as error:
            raise ValueError(
                f"cannot look through {error.filename}: {error.strerror}; make it readable, or list other images"
            ) from None
        parts = [part for part in parts if len(part)]
        if not parts:
            refuse_compressed(self.compressed)
            raise NoImagesError(self.path(name), self.others)
        return parts

    def container(self, name: str) -> Listing:
        """Return the images in a container, sorted."""
        status = os.stat(self.path(name))
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer
            raise ValueError(f"{self.path(name)} is no regular file; give a file that holds images, or take it out")
        self.stamps.append(SourceStamp.of(name, status))
        return Listing.of_container(name, images_in(self.path(name), is_image))

    def folder(self, start: str) -> list[Part]:
        """Return the images in a folder and below it, sorted."""
        files: list[str] = []
        for folder, status, names in walk(self.path(start)):
            below = posixpath.join(start, folder) if folder else start
            self.stamps.append(SourceStamp.of(below, status))
            files += [posixpath.join(below, name) for name in names if is_image(name) or is_container(name)]
            for name in filter(is_compressed_shard, names):
                self.compressed = self.path(posixpath.join(below, name))
            if not files:
                self.others += names[:NUM_OTHERS]
        return sorted_parts(files, self.container)


def sorted_parts(files: Iterable[str], container: Callable[[str], Listing]) -> list[Part]:
    """Return images and the content of containers among the files of a folder, sorted by path.

    Zip archives and Parquet files count if there are neither image files nor tar shards: next to those they hold the
    same images, as downloaded.
    """
    chosen = [file for file in files if is_image(file) or is_container(file)]
    plain = [file for file in chosen if is_image(file) or is_shard(file)]
    # The paths in a container all begin with its own and a slash, so that no other path lies between them.
    keys = sorted((os.fsencode(f if is_image(f) else f"{f}/"), f) for f in plain or chosen)
    return [os.fsencode(file) if is_image(file) else container(file) for _, file in keys]


class NoImagesError(ValueError):
    """A source holds no images; `others` are names of files that were found instead."""

    def __init__(self, source: str, others: Iterable[str] = ()) -> None:
        read = f"files with these endings are read: {' '.join(EXTENSIONS)}, also in {', '.join(ENDINGS)} files"
        if (found := conversion_of(others)) is not None:
            name, kind, advice = found
            read = f"{name} is {kind}; {advice}"
        super().__init__(f"no images in {source}; {read}")


def is_image(name: str) -> bool:
    """Return whether a file name has the ending of an image."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def is_image_line(line: bytes) -> bool:
    """Judge a line by its ending alone: looking at a million files would take minutes on a network drive."""
    return line[line.rfind(b".") :].lower() in _ENCODED_EXTENSIONS


def _has_columns(line: bytes) -> bool:
    """Return whether a line is the name of an image with something behind it, e.g. `a.jpg 3` or `a.jpg,cat`."""
    return any(is_image_line(line[: mark.start()]) for mark in re.finditer(rb"[\s,;]", line))


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
    return paths_in(text, str(path))


def paths_in(text: bytes, name: str) -> list[bytes]:
    """Return the paths that the text of a list names; raise ValueError if there are none."""
    lines = (line.removeprefix(BOM_UTF8).strip() for line in text.splitlines())  # joined files have marks inside
    paths = [line for line in lines if line and not line.startswith(b"#")]
    if not paths:
        raise ValueError(f"{name} names no images; write one path a line")
    return paths
