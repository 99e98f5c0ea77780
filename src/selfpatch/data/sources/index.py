"""Index of the images in folders, tar shards and lists, compact enough for millions of images.

Only numpy is imported, so that the command line can count the images before anything heavy is loaded.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from selfpatch.core.safe_paths import path_below
from selfpatch.data.sources import published
from selfpatch.data.sources.cache import cached, cached_remote
from selfpatch.data.sources.containers import stored_image
from selfpatch.data.sources.image_files import RemoteImage, StoredImage
from selfpatch.data.sources.listing import Listing
from selfpatch.data.sources.remote import is_url
from selfpatch.data.sources.remote_scan import look, url_below
from selfpatch.data.sources.scan import search
from selfpatch.data.sources.stamps import content_stamps, remote_stamps, time_stamps

BLOCK = 2**22
"""Numbers that are hashed at once."""
TRIED = 50
"""Number of files that are looked for before any is read."""


class ImageIndex:
    """Images of one source in a fixed order, addressed by their indices 0, 1, 2, ..."""

    def __init__(
        self, root: str | Path, images: Sequence[bytes] | Listing, versions: Mapping[str, int] | None = None
    ) -> None:
        """Index given images, by absolute paths or paths relative to `root`.

        `root` may be a URL; then `versions` holds a number for each container that changes with its content.
        """
        self.is_remote = is_url(str(root))
        self.root = str(root) if self.is_remote else os.path.abspath(root)
        self._images = images if isinstance(images, Listing) else Listing.of_files(images)
        self._versions = versions or {}
        self._containers: dict[bytes, str] = {}

    @classmethod
    def open(cls, source: str | Path, cache_dir: Path | None = None) -> "ImageIndex":
        """Index the images under a folder or in a container, sorted, or those listed in a text file, in its order.

        In a folder, hidden files and folders are skipped; links to folders are followed, each folder once. Tar shards
        (uncompressed `.tar` files) count as folders: their images are named `shard.tar/member.jpg`, and other members
        are ignored. The headers of shards are read now, the images later and in place. Zip archives and Parquet files
        count too in a folder without image files and tar shards.

        A URL that fsspec reads (http, s3, gs, hf, ...) may stand for any of these, see `remote_scan`.

        A text file lists one image, folder or shard per line, relative to its own folder. Folders and shards stand for
        all images in them, sorted. Blank lines and lines that begin with # are ignored. Files are checked when read.

        The result for folders and shards is cached in `cache_dir` (default: `default_cache_dir()`) and reused while no
        folder's modification time, and no shard's or list's time and size, changes. ValueError is raised for a source
        that is missing or without images, and for a compressed or damaged shard.
        """
        if is_url(str(source)):
            found = look(str(source))
            listing = cached_remote(found.read, str(source), found.stamps, cache_dir)
            return cls(found.root, listing, found.versions)
        path = Path(source).expanduser()
        if path.is_dir():
            return cls(path, cached(search, Path(os.path.realpath(path)), cache_dir))
        if path.is_file():
            return cls(path.absolute().parent, cached(search, path.absolute(), cache_dir))
        raise ValueError(
            f"no folder or file {str(source)!r}; give a folder of images, or a text file with one path a line, "
            "or a .tar shard, a .zip or .parquet file, or a URL"
        )

    def require_files(self) -> None:
        """Raise ValueError if half or more of some images, evenly spread, are missing, as those of a misspelt list."""
        count = min(TRIED, len(self))
        tried = [self.file(i * (len(self) - 1) // max(1, count - 1)) for i in range(count)]
        missing = [file for file in tried if isinstance(file, Path) and not os.path.lexists(file)]
        if 2 * len(missing) >= count:
            raise ValueError(
                f"{len(missing)} of {count} image files that were tried cannot be found, e.g. {missing[0]}; "
                "list paths relative to the list's folder, or absolute ones"
            )

    def __len__(self) -> int:
        return len(self._images)

    def path(self, index: int) -> Path:
        """Return the name of an image; `shard.tar/member.jpg` if it lies in a shard."""
        return Path(str(self.file(index)))

    def name(self, index: int) -> str:
        """Return the path of an image below the root; faster than `path`, for data sets of millions."""
        name = os.fsdecode(self._images.path(index))
        return os.path.relpath(name, self.root) if os.path.isabs(name) else name

    def file(self, index: int) -> Path | StoredImage:
        """Return an image as readers take it; raise IndexError if the index is negative or too large."""
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is out of range; use 0 to {len(self) - 1}")
        path, length, first, second = self._images.entry(index)
        if not length and self.is_remote:
            return RemoteImage(url_below(self.root, os.fsdecode(path)), second)
        if not length:
            return Path(self.root, os.fsdecode(path))
        container, name = path[:length], path[length + 1 :]
        return stored_image(self._container(container), os.fsdecode(name), first, second, self._version(container))

    def _container(self, name: bytes) -> str:
        """Return the path or URL of a container."""
        if name not in self._containers:
            text = os.fsdecode(name)
            if self._images.confined and not self.is_remote:
                path_below(Path(self.root), text, f"the index of {self.root}")
            joined = url_below(self.root, text) if self.is_remote else os.path.join(self.root, text)
            self._containers[name] = joined
        return self._containers[name]

    def _version(self, container: bytes) -> int:
        return self._versions.get(os.fsdecode(container), self._versions.get(published.NAME, 0))

    @property
    def classes(self) -> tuple[str, ...]:
        """Sub-folders of the root, sorted; empty unless there are at least two and every image lies in one.

        A shard counts as unpacked in its folder: `dog/photos.tar/1.jpg` and `train-000.tar/dog/2.jpg` both have the
        class `dog`, `train-000.tar/3.jpg` has none.
        """
        return self._labels[0]

    def label(self, index: int) -> int | None:
        """Return the position of an image's class in `classes`, or None if there are no classes."""
        classes, labels = self._labels
        return int(labels[index]) if classes else None

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the relative paths: independent of the root, different once an image is added or removed."""
        digest = hashlib.sha256()
        for array, kind in ((self._images.offsets, "<i8"), (self._images.characters, "u1")):
            for start in range(0, len(array), BLOCK):  # a memory-mapped index is not copied as a whole
                digest.update(np.ascontiguousarray(array[start : start + BLOCK], kind).data)
        return digest.hexdigest()[:32]

    def stamps(self, *, content: bool = False) -> np.ndarray:
        """Return size and modification time, or a hash of the content, of each image, [n, 2] (`stamps.py`)."""
        if content:
            return content_stamps(self.file, len(self))
        return remote_stamps(self._images, self._version) if self.is_remote else time_stamps(self.root, self._images)

    def split(self, held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Return training indices and `held_out` random held-out ones, at most a tenth of the images.

        They are two disjoint sorted int64 arrays that cover all images.
        """
        if held_out < 0:
            raise ValueError(f"{held_out} images cannot be held out; use 0 for none")
        held_out = min(held_out, len(self) // 10)
        draws = np.random.Generator(np.random.Philox(key=seed % 2**64)).random(len(self))
        order = np.argsort(draws, kind="stable")
        return np.sort(order[held_out:]), np.sort(order[:held_out])

    @cached_property
    def _labels(self) -> tuple[tuple[str, ...], np.ndarray]:
        numbers: dict[bytes, int] = {}
        labels = np.empty(len(self), np.int32)
        for i, (path, container) in enumerate(self._images.paths()):
            name, _, rest = _unpacked(path, container).partition(b"/")
            if not rest or name in (b"", b".", b".."):
                return (), np.zeros(0, np.int32)
            labels[i] = numbers.setdefault(name, len(numbers))
        if len(numbers) < 2:
            return (), np.zeros(0, np.int32)
        names = sorted(numbers)
        ranks = np.empty(len(names), np.int32)
        ranks[[numbers[name] for name in names]] = np.arange(len(names))
        return tuple(map(os.fsdecode, names)), ranks[labels]


def _unpacked(path: bytes, shard: int) -> bytes:
    """Return the path that an image has once its shard, the first `shard` bytes, is unpacked in the shard's folder."""
    return path[: path.rfind(b"/", 0, shard) + 1] + path[shard + 1 :] if shard else path
