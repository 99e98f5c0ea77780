"""Images that become the rows of a file of features."""

from pathlib import Path
from typing import Protocol

import numpy as np

from selfpatch.data.decode.pillow import Picture, read_picture
from selfpatch.data.images import evenly_spread
from selfpatch.data.sources.image_files import ImageFile
from selfpatch.data.sources.index import ImageIndex


class Rows(Protocol):
    """Images of a source in a fixed order."""

    def __len__(self) -> int:
        """Return the number of rows."""

    @property
    def num_images(self) -> int:
        """Number of images of the source, of which `limit` takes some."""

    @property
    def fingerprint(self) -> str:
        """Hash that changes with the images of the source."""

    def stamps(self) -> np.ndarray:
        """Return numbers [n, 2] int64 that change with an image."""

    def name(self, row: int) -> str:
        """Return the name of a row's image in the file of features."""

    def path(self, row: int) -> ImageFile:
        """Return what an error calls a row's image."""

    def picture(self, row: int, channels: int) -> Picture:
        """Return a row's image; raise any error if it cannot be read."""

    def batches(self, rows: np.ndarray, size: int, workers: int) -> list[np.ndarray]:
        """Return rows in batches of at most `size`, in the order in which `workers` processes read them in turn."""


class ImageRows:
    """Images of a folder, shard or list as rows; `limit` takes some, evenly spread."""

    def __init__(self, data: str | Path, limit: int | None) -> None:
        self._index = ImageIndex.open(data)
        self._index.require_files()
        self._indices = evenly_spread(np.arange(len(self._index)), limit or len(self._index))
        self.num_images, self.fingerprint = len(self._index), self._index.fingerprint

    def __len__(self) -> int:
        return len(self._indices)

    def stamps(self) -> np.ndarray:
        """Return size and modification time of each image, int64 [n, 2]."""
        return self._index.stamps()[self._indices]

    def name(self, row: int) -> str:
        """Return the path of a row's image below the source."""
        return self._index.name(int(self._indices[row]))

    def path(self, row: int) -> ImageFile:
        """Return a row's image as readers take it."""
        return self._index.file(int(self._indices[row]))

    def picture(self, row: int, channels: int) -> Picture:
        """Return a row's image; BadImage is raised if it cannot be read."""
        return read_picture(self.path(row), channels)

    def batches(self, rows: np.ndarray, size: int, workers: int) -> list[np.ndarray]:
        """Return rows in batches of at most `size`."""
        return in_batches(rows, size)


def in_batches(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Return rows in batches of at most `size`."""
    return [rows[first : first + size] for first in range(0, len(rows), size)]
