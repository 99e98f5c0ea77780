"""Which images there are, in folders, tar shards and lists of them, as an index that millions of images fit into.

Only numpy is imported, so that the command line can count the images before anything heavy is loaded.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from selfpatch.data.sources.cache import Listing, cached
from selfpatch.data.sources.image_files import ShardMember
from selfpatch.data.sources.scan import search_file, search_folder


class ImageIndex:
    """The images of one source, in a fixed order; an image's number in it is its *place*."""

    def __init__(self, root: str | Path, images: Sequence[bytes] | Listing) -> None:
        """
        Args:
            root: the folder that the paths are relative to.
            images: relative (or absolute) paths of files, in file-system encoding; or files and members of shards.
        """
        self.root = os.path.abspath(root)
        self._images = images if isinstance(images, Listing) else Listing.of_files(images)

    @classmethod
    def open(cls, source: str | Path, cache_dir: Path | None = None) -> ImageIndex:
        """The images under a folder or in a tar shard, sorted, or those that a text file names, in its order.

        In a folder, hidden files and folders are skipped and links to folders are followed, each folder once. Its tar
        shards (uncompressed `.tar` files) count as folders: their images belong to it, `shard.tar/member.jpg`, and
        whatever else they hold does not. Headers of shards are read here, images later, in place.
        In a text file there is one image, folder or shard a line, relative to the file's own folder; folders and shards
        stand for all images in them, sorted; blank lines and lines that begin with # do not count. Whether the files
        exist and are images shows when they are read.
        What was found in folders and shards is kept in `cache_dir` and taken from there for as long as no folder's
        modification time, and no shard's or list's time and size, changes.

        Args:
            source: folder, shard or text file.
            cache_dir: folder for the index; None: `default_cache_dir()`. Where it cannot be written there is no cache.

        Raises:
            ValueError: there is no such folder or file, no image in it, or a shard is compressed or damaged.
        """
        path = Path(source).expanduser()
        if path.is_dir():
            root = os.path.realpath(path)
            return cls(path, cached(root, root, cache_dir, partial(search_folder, root)))
        if path.is_file():
            path = path.absolute()
            return cls(path.parent, cached(str(path), str(path.parent), cache_dir, partial(search_file, path)))
        raise ValueError(
            f"no folder or file {str(source)!r}; give a folder of images, or a text file with one path a line, "
            "or a .tar shard"
        )

    def __len__(self) -> int:
        return len(self._images)

    def path(self, place: int) -> Path:
        """What the image is called; `shard.tar/member.jpg` where it lies in a shard."""
        return Path(str(self.file(place)))

    def file(self, place: int) -> Path | ShardMember:
        """What readers take."""
        if not 0 <= place < len(self):
            raise IndexError(f"place {place} is outside the index of {len(self)} images")
        path, length, offset, size = self._images.get(place)
        if not length:
            return Path(self.root, os.fsdecode(path))
        shard, name = path[:length], path[length + 1 :]
        return ShardMember(os.path.join(self.root, os.fsdecode(shard)), os.fsdecode(name), offset, size)

    @property
    def classes(self) -> tuple[str, ...]:
        """The root's sub-folders, sorted, where every image lies in one and there are at least two; else empty.

        A shard counts as unpacked in the folder that it lies in: `dog/photos.tar/1.jpg` and `train-000.tar/dog/2.jpg`
        are both of the class `dog`, and `train-000.tar/3.jpg` is of none.
        """
        return self._labels[0]

    def label(self, place: int) -> int | None:
        """The image's place in `classes`, or None where there are none."""
        classes, labels = self._labels
        return int(labels[place]) if classes else None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the relative paths: the same wherever the folder lies, another when an image came or went."""
        digest = hashlib.sha256(self._images.paths.offsets.astype("<i8").tobytes())
        digest.update(self._images.paths.characters.tobytes())
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
        shards = self._images.extents[:, 0].tolist() or [0] * len(self)
        parts = [_unpacked(self._images.paths.get(i), shard).partition(b"/") for i, shard in enumerate(shards)]
        names = sorted({name for name, _, _ in parts})
        if len(names) < 2 or not all(rest for _, _, rest in parts) or not {b"", b".", b".."}.isdisjoint(names):
            return (), np.zeros(0, np.int32)
        numbers = {name: number for number, name in enumerate(names)}
        return tuple(map(os.fsdecode, names)), np.array([numbers[name] for name, _, _ in parts], np.int32)


def _unpacked(path: bytes, shard: int) -> bytes:
    """The path that an image has where its shard, the first so many bytes, is unpacked beside itself."""
    return path[: path.rfind(b"/", 0, shard) + 1] + path[shard + 1 :] if shard else path
