"""An image file whose pixels are decoded only where they are needed, which cached features make rare."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class LazyImage:
    """An RGB image of known size."""

    path: Path
    height: int
    width: int
    read: Callable[[], Image.Image]
    """Function that decodes the image; it raises ValueError if the file is damaged or of another size."""

    @cached_property
    def rgb(self) -> Image.Image:
        """The image, decoded once."""
        return self.read()

    @property
    def pixels(self) -> np.ndarray:
        """Pixels, uint8 [height, width, 3]."""
        return np.asarray(self.rgb)

    def stamp(self) -> tuple[str, int, int]:
        """Return what changes with the file: its path, size in bytes and time of change."""
        stat = self.path.stat()
        return str(self.path), stat.st_size, stat.st_mtime_ns
