"""Compact table of image files and of images in containers: tar shards, zip archives and Parquet files."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

CHUNK = 100_000
"""Images that are looked at together."""


class ImageEntry(NamedTuple):
    """An image file, or an image in a container, whose path is then the container's, a slash and the member's name."""

    path: bytes
    shard: int = 0  # length of the container's path; 0 for a plain file
    offset: int = 0  # first of the two numbers of `containers.images_in`: in a tar, the first byte
    size: int = 0  # second number: in a tar, the number of bytes; also that of a plain remote file, if known


@dataclass(frozen=True)
class Listing:
    """Images in a fixed order, as three arrays.

    A list of paths would be copied page by page into each forked worker that reads it.
    """

    characters: np.ndarray
    """[total length] uint8, `ImageEntry.path` of all images, one after the other."""
    offsets: np.ndarray
    """[images + 1] int64, first character of each path, and the total length."""
    extents: np.ndarray
    """[images, 3] int64, the other fields of `ImageEntry`; [0, 3] if they are 0 for all images."""
    confined: bool = False
    """True if the names of containers come from a file of unknown origin, and must stay below the root."""

    @staticmethod
    def of_files(paths: Sequence[bytes], extents: Sequence[tuple[int, int, int]] = ()) -> "Listing":
        """List plain image files, unless `extents` locates them in shards."""
        offsets = np.cumsum([0, *map(len, paths)], dtype=np.int64)
        return Listing(np.frombuffer(b"".join(paths), np.uint8), offsets, np.array(extents, np.int64).reshape(-1, 3))

    @staticmethod
    def of_container(name: str, members: Mapping[str, tuple[int, int]]) -> "Listing":
        """List the images in a container, sorted, from the two numbers that tell where each is in it."""
        container = os.fsencode(name)
        found = sorted((container + b"/" + os.fsencode(member), *numbers) for member, numbers in members.items())
        extents = [(len(container), first, second) for _, first, second in found]
        return Listing.of_files([path for path, _, _ in found], extents)

    @staticmethod
    def joined(parts: "Sequence[bytes | Listing]") -> "Listing":
        """List, one after the other, plain image files and the images of other listings."""
        listings: list[Listing] = []
        for _, group in itertools.groupby(parts, lambda part: isinstance(part, bytes)):
            several = [*group]
            files = [part for part in several if isinstance(part, bytes)]
            listings += [Listing.of_files(files)] if files else [p for p in several if isinstance(p, Listing)]
        if len(listings) == 1:
            return listings[0]
        starts = np.cumsum([0, *(len(part.characters) for part in listings)])
        offsets = [part.offsets[:-1] + start for part, start in zip(listings, starts, strict=False)]
        extents = [part.extents if len(part.extents) else np.zeros((len(part), 3), np.int64) for part in listings]
        located = any(len(part.extents) for part in listings)
        return Listing(
            np.concatenate([part.characters for part in listings]) if listings else np.zeros(0, np.uint8),
            np.concatenate([*offsets, starts[-1:]]),
            np.concatenate(extents) if located else np.zeros((0, 3), np.int64),
        )

    def is_sound(self) -> bool:
        """Return whether the arrays have the types and shapes above, and lead nowhere outside one another."""
        kinds = [(a.dtype, a.ndim) for a in (self.characters, self.offsets, self.extents)]
        return (
            kinds == [(np.dtype(np.uint8), 1), (np.dtype(np.int64), 1), (np.dtype(np.int64), 2)]
            and len(self.offsets) > 1
            and self.offsets[0] == 0
            and self.offsets[-1] == len(self.characters)
            and self.extents.shape in ((0, 3), (len(self), 3))
            and all(
                (np.diff(self.offsets[i : i + CHUNK + 1]) > 0).all() and (self.extents[i : i + CHUNK] >= 0).all()
                for i in range(0, len(self), CHUNK)
            )
        )

    def path(self, i: int) -> bytes:
        """Return the path of image `i`."""
        return self.characters[self.offsets[i] : self.offsets[i + 1]].tobytes()

    def paths(self) -> Iterator[tuple[bytes, int]]:
        """Yield the path of each image, and the length of its container's, a part at a time: lists would be large."""
        for first in range(0, len(self), CHUNK):
            starts = self.offsets[first : first + CHUNK + 1].tolist()
            characters = self.characters[starts[0] : starts[-1]].tobytes()
            lengths = self.extents[first : first + CHUNK, 0].tolist() or [0] * (len(starts) - 1)
            for (start, end), length in zip(itertools.pairwise(starts), lengths, strict=True):
                yield characters[start - starts[0] : end - starts[0]], length

    def entry(self, i: int) -> ImageEntry:
        """Return image `i`."""
        return ImageEntry(self.path(i), *(self.extents[i].tolist() if len(self.extents) else ()))

    def __len__(self) -> int:
        return len(self.offsets) - 1
