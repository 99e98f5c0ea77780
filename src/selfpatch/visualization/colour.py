"""The colours that the pictures share: ink and paper, one hue for each query, and a map from numbers to colours."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

RGB = tuple[int, int, int]

PAPER: RGB = (255, 255, 255)
INK: RGB = (27, 31, 36)
MUTED: RGB = (101, 109, 118)
LINE: RGB = (216, 222, 228)

SERIES: tuple[RGB, ...] = (
    (230, 75, 53), (0, 114, 189), (0, 150, 110), (204, 95, 170), (217, 143, 0), (86, 130, 40),
)  # fmt: skip
"""Hues for queries and curves: told apart with any kind of colour vision (after Okabe and Ito), readable on black and
on white, dark enough to carry white numerals."""

# Viridis (S. van der Walt and N. Smith, CC0) at nine even places; between them it is linear as far as an eye can tell.
_VIRIDIS = np.array([
    (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141),
    (39, 173, 129), (92, 200, 99), (170, 220, 50), (253, 231, 37),
], dtype=np.float64)  # fmt: skip


def viridis(values: ArrayLike) -> NDArray[np.uint8]:
    """Colours [..., 3] of values [...] in [0, 1]: dark violet to bright yellow, lightness rising evenly. Values outside
    are clipped."""
    places = np.clip(np.asarray(values, dtype=np.float64), 0, 1)
    stops = np.linspace(0, 1, len(_VIRIDIS))
    channels = [np.interp(places, stops, _VIRIDIS[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
